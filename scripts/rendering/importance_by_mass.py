#!/usr/bin/env python3
"""Draw the tables of docs/traces.md on importance by share of attention, from importance_by_mass.json.

PYTHONPATH=scripts python -m rendering.importance_by_mass
"""

from __future__ import annotations

import json
from typing import Any

from common.measurement import RESULTS
from rendering.marked_page import fill
from rendering.replay import BELADY, LRU, PAGE, find
from rendering.results import provenance, table

NAME = "importance_by_mass"
BASE = "importance"
SIZES = (1.25, 2.5)


def entry(session: dict[str, Any], policy: str, size: float, ahead: bool = False) -> dict[str, Any]:
    """One replay of a session."""
    found = find(session, policy, size, ahead)
    assert found is not None
    return found


def way(session: dict[str, Any], replay: dict[str, Any]) -> float:
    """Part of the way from LRU to Belady's MIN, both without runners-up."""
    low, high = (entry(session, name, replay["capacity"])["page_hit_rate"] for name in (LRU, BELADY))
    return (replay["page_hit_rate"] - low) / (high - low)


def policies(metrics: dict[str, Any]) -> list[str]:
    """All that were replayed but the two ends."""
    first = next(iter(metrics.values()))
    names = dict.fromkeys(replay["policy"] for replay in first["replays"])
    return [name for name in names if name not in (LRU, BELADY)]


def header(metrics: dict[str, Any]) -> list[str]:
    """A column for each session and capacity."""
    return ["policy", *(f"{name.replace('-', ', page ')}, {size:g}x" for name in metrics for size in SIZES)]


def ways(metrics: dict[str, Any], ahead: bool) -> str:
    """How far each policy goes from LRU to MIN, and its pages that cross the bus relative to LRU's."""
    rows = []
    for policy in policies(metrics):
        cells = []
        for session in metrics.values():
            for size in SIZES:
                found, base = entry(session, policy, size, ahead), entry(session, LRU, size)
                cells.append(f"{way(session, found):.2f} at {found['traffic'] / base['traffic']:.1f}x")
        rows.append([policy, *cells])
    return table(header(metrics), rows)


def differences(metrics: dict[str, Any]) -> str:
    """Points of hit rate above `importance`, with intervals, where only misses get frames."""
    rows = []
    for policy in policies(metrics):
        cells = []
        for session in metrics.values():
            for size in SIZES:
                found = entry(session, policy, size)
                low, high = (100 * bound for bound in found["above_importance_interval"])
                cells.append(f"{100 * found['above_importance']:+.2f} ({low:+.2f}, {high:+.2f})")
        if policy != BASE:
            rows.append([policy, *cells])
    return table(header(metrics), rows)


def alphas(metrics: dict[str, Any]) -> str:
    """Part of the way, mean over sessions, by weight of the newest step."""
    server = next(iter(metrics.values()))["importance_alpha"]
    kept = sorted({server, *(float(alpha) for one in metrics.values() for alpha in one["alphas"])})
    rows = []
    for policy in (name for name in policies(metrics) if name.startswith(BASE)):
        cells = []
        for size in SIZES:
            for alpha in kept:
                found = [
                    way(
                        one,
                        entry(
                            one if alpha == server else {"replays": one["alphas"][str(alpha)]}, policy, size
                        ),
                    )
                    for one in metrics.values()
                ]
                cells.append(f"{sum(found) / len(found):.2f}")
        rows.append([policy, *cells])
    return table(["policy", *(f"{size:g}x, {alpha:g}" for size in SIZES for alpha in kept)], rows)


def tables(result: dict[str, Any]) -> str:
    """All of them."""
    metrics = result["metrics"]
    parts = [
        "Part of the way from LRU to Belady's MIN, and pages that cross the bus relative to LRU's, where only misses "
        "get frames:",
        ways(metrics, False),
        "With runners-up, by the same ends:",
        ways(metrics, True),
        "Points of hit rate above `importance` where only misses get frames, with 95 % intervals over requests, layers "
        "and KV heads:",
        differences(metrics),
        "Part of the way by the weight of the newest step, mean of the sessions, where only misses get frames:",
        alphas(metrics),
        provenance(result),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Replace what stands between the markers of the page."""
    fill(PAGE, NAME, tables(json.loads((RESULTS / f"{NAME}.json").read_text())))


if __name__ == "__main__":
    main()
