"""The hit-rate report: from counters to plain data, and from plain data to tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table


def build_report(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the counters of recorded requests.

    Parameters
    ----------
    requests
        Snapshots with ``rid``, ``iterations`` and ``[L, H]`` arrays ``rates`` (sum of per-iteration hit rates),
        ``hits``, ``selected`` and ``mass`` (or None). A request that was retracted and resumed has several.

    Returns
    -------
    dict
        ``overall`` and one entry per request in ``requests``. Each has ``samples`` (layers x KV heads x decode
        iterations), ``hit_rate`` (mean over samples), ``page_hit_rate`` (hit pages / selected pages),
        ``per_layer``, ``per_head`` and, where recorded, ``mass_covered``. JSON-ready.
    """
    used = [request for request in requests if request["iterations"] > 0]
    by_rid: dict[str, list[dict[str, Any]]] = {}
    for request in used:
        by_rid.setdefault(request["rid"], []).append(request)
    return {
        "overall": _summary(used),
        "requests": [
            {"rid": rid, "iterations": sum(part["iterations"] for part in parts), **_summary(parts)}
            for rid, parts in by_rid.items()
        ],
    }


def _summary(requests: list[dict[str, Any]]) -> dict[str, Any]:
    iterations = sum(request["iterations"] for request in requests)
    if not iterations:
        return {"samples": 0, "hit_rate": None, "page_hit_rate": None, "per_layer": [], "per_head": []}
    rate = np.sum([request["rates"] for request in requests], axis=0, dtype=np.float64) / iterations
    hits = sum(int(request["hits"].sum()) for request in requests)
    selected = sum(int(request["selected"].sum()) for request in requests)
    summary: dict[str, Any] = {
        "samples": iterations * rate.size,
        "hit_rate": round(float(rate.mean()), 4),
        "page_hit_rate": round(hits / max(selected, 1), 4),
        "per_layer": [round(float(value), 4) for value in rate.mean(axis=1)],
        "per_head": [round(float(value), 4) for value in rate.mean(axis=0)],
    }
    if requests[0]["mass"] is not None:
        mass = np.sum([request["mass"] for request in requests], axis=0, dtype=np.float64) / iterations
        summary["mass_covered"] = round(float(mass.mean()), 4)
    return summary


def render_report(state: dict[str, Any]) -> RenderableType:
    """Tables for a terminal.

    Parameters
    ----------
    state
        The ``rheo`` object of a server's internal state: ``recorder``, ``counters``, ``misses`` and
        ``prefixes``.
    """
    parts: list[RenderableType] = []
    recorder = state.get("recorder")
    if recorder is None:
        parts.append("The recorder is off (recorder='off' in --rheo-config).")
    elif not recorder["requests"]:
        parts.append("No decode step has been recorded yet.")
    else:
        parts += [_requests_table(recorder), _averages_table(recorder["overall"])]
    parts.append(_mapping_table("Pages and frames", state.get("counters", {})))
    if state.get("misses"):
        parts.append(_mapping_table("Misses of a layer", state["misses"]))
    if state.get("prefixes"):
        parts.append(_prefixes_table(state["prefixes"]))
    return Group(*parts)


def print_report(state: dict[str, Any]) -> None:
    """Print `render_report` to the standard output."""
    Console().print(render_report(state))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _requests_table(recorder: dict[str, Any]) -> Table:
    table = Table(title="Hit rate per request")
    for column in ("request", "iterations", "samples", "hit rate", "pages hit", "mass covered"):
        table.add_column(column, justify="left" if column == "request" else "right")
    rows = [(entry["rid"][:12], str(entry["iterations"]), entry) for entry in recorder["requests"]]
    for name, iterations, entry in [*rows, ("all", "", recorder["overall"])]:
        table.add_row(
            name,
            iterations,
            f"{entry['samples']:,}",
            _percent(entry["hit_rate"]),
            _percent(entry["page_hit_rate"]),
            _percent(entry.get("mass_covered")),
        )
    return table


def _averages_table(overall: dict[str, Any]) -> Table:
    table = Table(title="Average hit rate per layer and per KV head")
    table.add_column("layer", justify="right")
    table.add_column("hit rate", justify="right")
    table.add_column("KV head", justify="right")
    table.add_column("hit rate", justify="right")
    layers, heads = overall["per_layer"], overall["per_head"]
    for row in range(max(len(layers), len(heads))):
        layer = (str(row), _percent(layers[row])) if row < len(layers) else ("", "")
        head = (str(row), _percent(heads[row])) if row < len(heads) else ("", "")
        table.add_row(*layer, *head)
    return table


def _prefixes_table(prefixes: list[dict[str, Any]]) -> Table:
    table = Table(title="Longest cached prefixes")
    for column in ("tokens", "importance", "resident", "in use"):
        table.add_column(column, justify="right")
    for node in prefixes:
        table.add_row(
            f"{node['tokens']:,}",
            f"{node['importance']:.3f}",
            _percent(node["resident"]),
            "yes" if node["locked"] else "no",
        )
    return table


def _mapping_table(title: str, values: dict[str, Any]) -> Table:
    table = Table(title=title)
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    return table
