"""Averages of recorded requests, as plain data."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rheo_sglang.recorder.ended import FIELDS, KEPT_REQUESTS, Request


class Totals(NamedTuple):
    """Sums over one or several recorded requests."""

    iterations: int
    listed: int
    per_layer: np.ndarray[Any, Any]
    """Hit rates summed over steps and KV heads, ``[L]``."""
    per_head: np.ndarray[Any, Any]
    """Hit rates summed over steps and layers, ``[H]``."""
    hits: float
    selected: float
    mass: float
    mass_samples: float
    coverage: float
    """Over requests in which it is finite."""
    coverage_iterations: int
    """Of these."""
    grown: float
    grown_pages: float


def build_report(
    requests: list[Request],
    reduced: np.ndarray[Any, Any],
    layers: int,
    kv_heads: int,
    with_mass: bool,
    with_coverage: bool,
    with_growth: bool,
) -> dict[str, Any]:
    """Average the counters of recorded requests.

    Parameters
    ----------
    requests
        Recorded requests. One that was retracted and resumed may occur several times.
    reduced
        Their sums, ``[X, L + H + 7]``, float64, see `reduce_rows`.
    layers, kv_heads
        ``L`` and ``H``.
    with_mass
        Whether covered attention mass was recorded.
    with_coverage
        Whether estimates of it were recorded.
    with_growth
        Whether budgets that grew were recorded.

    Returns
    -------
    dict
        ``kept_requests`` (how many ended requests are kept at most), ``overall`` (all requests that are shown) and
        one entry per request in ``requests``. JSON-ready and finite. ``overall`` and every entry have

        - ``samples``: layers x KV heads x decode steps;
        - ``hit_rate``: mean over samples of resident / selected pages; ``page_hit_rate``: resident / selected pages;
        - ``selected_share``: selected pages / pages of the context, over all samples: the budget as it was;
        - ``per_layer``, ``per_head``: mean hit rates;
        - where recorded, ``estimated_coverage``: mean over samples of the share of attention that selected pages
          have by estimate, over requests in which it is finite, None without one;
        - where recorded, ``grown_share``: samples in which more than the budget was allowed / samples, and
          ``grown_pages``: how many pages more, mean over samples;
        - where recorded, ``mass_covered`` (mean over the samples in which it was finite, None without one) and
          ``mass_not_finite`` (samples in which it was not).
    """
    by_rid: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        if request.iterations:
            by_rid.setdefault(request.rid, []).append(index)

    def entry(indices: list[int]) -> tuple[int, dict[str, Any]]:
        totals = _sum([requests[index] for index in indices], reduced[indices], layers, kv_heads)
        return totals.iterations, _averages(totals, layers * kv_heads, with_mass, with_coverage, with_growth)

    shown = []
    for rid, indices in by_rid.items():
        iterations, averages = entry(indices)
        shown.append({"rid": rid, "iterations": iterations, **averages})
    overall = entry([index for indices in by_rid.values() for index in indices])[1]
    return {"kept_requests": KEPT_REQUESTS, "overall": overall, "requests": shown}


def _sum(requests: list[Request], reduced: np.ndarray[Any, Any], layers: int, kv_heads: int) -> Totals:
    row = reduced.sum(0) if len(reduced) else np.zeros(layers + kv_heads + len(FIELDS))
    hits, selected, mass, mass_samples, _, grown, grown_pages = row[layers + kv_heads :].tolist()
    coverage = reduced[:, layers + kv_heads + FIELDS.index("coverage")]
    finite = np.isfinite(coverage)
    iterations = np.array([request.iterations for request in requests], dtype=np.int64)
    return Totals(
        int(iterations.sum()),
        sum(request.listed for request in requests),
        row[:layers],
        row[layers : layers + kv_heads],
        hits,
        selected,
        mass,
        mass_samples,
        float(coverage[finite].sum()),
        int(iterations[finite].sum()),
        grown,
        grown_pages,
    )


def _averages(
    totals: Totals, rows: int, with_mass: bool, with_coverage: bool, with_growth: bool
) -> dict[str, Any]:
    """Averages over ``rows`` (layer, KV head) pairs and the steps that were summed."""
    samples = totals.iterations * rows
    layers, heads = len(totals.per_layer), len(totals.per_head)
    averages: dict[str, Any] = {
        "samples": samples,
        "hit_rate": _ratio(float(totals.per_layer.sum()), samples),
        "page_hit_rate": _ratio(totals.hits, totals.selected),
        "selected_share": _ratio(totals.selected, totals.listed * rows),
        "per_layer": _means(totals.per_layer, totals.iterations * heads),
        "per_head": _means(totals.per_head, totals.iterations * layers),
    }
    if with_coverage:
        averages["estimated_coverage"] = _ratio(totals.coverage, totals.coverage_iterations * rows)
    if with_growth:
        averages["grown_share"] = _ratio(totals.grown, samples)
        averages["grown_pages"] = _ratio(totals.grown_pages, samples)
    if with_mass:
        averages["mass_covered"] = _ratio(totals.mass, totals.mass_samples)
        averages["mass_not_finite"] = samples - int(totals.mass_samples)
    return averages


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _means(sums: np.ndarray[Any, Any], count: int) -> list[float]:
    return (sums / count).round(4).tolist() if count else []
