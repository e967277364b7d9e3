"""What replays found, as plain data and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from rheo_sglang.replay.intervals import interval, resampled
from rheo_sglang.replay.sweep import BELADY, Outcome

LRU = "lru"


def groups(outcomes: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    """Outcomes that differ by policy alone."""

    def key(outcome: Outcome) -> tuple[float, int, float]:
        case = outcome.case
        return (case.budget or 0.0, case.runners_up, case.capacity or 0.0)

    for _, found in groupby(sorted(outcomes, key=key), key):
        yield list(found)


def describe(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """JSON-ready: one entry an outcome.

    ``page_hit_rate`` (resident of all selected pages) and ``hit_rate`` (mean over layers, KV heads and steps) are those
    of `rheo report`. ``traffic`` counts pages that cross the bus for every selected page. Where LRU was replayed too,
    ``above_lru`` is how far the page hit rate is above its, and with Belady's as well, ``of_the_way`` is which part
    that is of the distance between the two. Intervals are of 95 %, see `resampled`.
    """
    entries = []
    for found in groups(outcomes):
        samples = resampled(found)
        places = {outcome.case.policy: place for place, outcome in enumerate(found)}
        for outcome, rates in zip(found, samples, strict=True):
            entry: dict[str, Any] = {
                "policy": outcome.case.policy,
                "capacity": outcome.case.capacity,
                "frames": outcome.frames,
                "runners_up": outcome.case.runners_up,
                "budget": outcome.case.budget,
                "page_hit_rate": round(outcome.page_hit_rate, 5),
                "interval": interval(rates),
                "hit_rate": round(outcome.hit_rate, 5),
                "traffic": round(outcome.traffic, 5),
                "by_request": {
                    request: round(float(hits.sum() / max(selected.sum(), 1)), 4)
                    for request, hits, selected in zip(
                        outcome.requests, outcome.hits, outcome.selected, strict=True
                    )
                },
            }
            if LRU in places and outcome.case.policy != LRU:
                base = samples[places[LRU]]
                difference = outcome.page_hit_rate - found[places[LRU]].page_hit_rate
                entry["above_lru"] = round(difference, 5)
                entry["above_lru_interval"] = interval(rates - base)
                if BELADY in places and outcome.case.policy != BELADY:
                    most = found[places[BELADY]].page_hit_rate - found[places[LRU]].page_hit_rate
                    gap = samples[places[BELADY]] - base
                    entry["of_the_way"] = round(difference / most, 4) if most else None
                    with np.errstate(divide="ignore", invalid="ignore"):
                        entry["of_the_way_interval"] = interval((rates - base) / gap)
            entries.append(entry)
    return entries


def render(entries: Sequence[dict[str, Any]], manifest: dict[str, Any]) -> RenderableType:
    """A table for each budget and number of runners-up: policies down, capacities across."""
    parts: list[RenderableType] = []

    def key(entry: dict[str, Any]) -> tuple[float, int]:
        return entry["budget"] or 0.0, entry["runners_up"]

    for (budget, runners_up), found in groupby(sorted(entries, key=key), key):
        parts.append(_table(list(found), manifest, budget, runners_up))
    return Group(*parts)


def _table(entries: list[dict[str, Any]], manifest: dict[str, Any], budget: float, runners_up: int) -> Table:
    chosen = f"budget {budget:g}" if budget else "selections as traced"
    ahead = f"{runners_up} runners-up looked at" if runners_up else "misses alone get frames"
    columns = list(dict.fromkeys((entry["capacity"], entry["frames"]) for entry in entries))
    table = Table(
        title=f"{manifest['model']}, page {manifest['page_size']}, {chosen}, {ahead}: selected pages with a frame",
        caption="Columns: frames relative to the largest selection of a step, and their number. In brackets: pages "
        "that cross the bus for every 100 that are selected.",
        caption_justify="left",
    )
    table.add_column("policy", no_wrap=True)
    for capacity, frames in columns:
        name = "server" if capacity is None else f"{capacity:g}x"
        table.add_column(f"{name} ({frames})", justify="right", no_wrap=True)
    for policy in dict.fromkeys(entry["policy"] for entry in entries):
        cells = {entry["capacity"]: entry for entry in entries if entry["policy"] == policy}
        shown = [
            f"{100 * cells[capacity]['page_hit_rate']:.2f} % [{100 * cells[capacity]['traffic']:.1f}]"
            if capacity in cells
            else "-"
            for capacity, _ in columns
        ]
        table.add_row(policy, *(cell.replace("[", "\\[") for cell in shown))
    return table
