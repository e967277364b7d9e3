#!/usr/bin/env python3
"""Draw the tables of docs/traces.md on pre-warming from prewarm_cpu.json.

PYTHONPATH=scripts python -m rendering.prewarm
"""

from __future__ import annotations

import json
from typing import Any

from common.measurement import RESULTS
from rendering.marked_page import fill
from rendering.replay import PAGE
from rendering.results import provenance, table

NAME = "prewarm_cpu"
SPANS = {"1": "step 1", "2-4": "2 to 4", "5-16": "5 to 16", "1-16": "1 to 16", "later": "later"}


def find(session: dict[str, Any], policy: str, capacity: float, weight: float, ahead: bool) -> dict[str, Any]:
    """One replay of a session."""
    wanted = policy, capacity, weight, ahead
    for entry in session["replays"]:
        if (entry["policy"], entry["capacity"], entry["prewarm"], bool(entry["runners_up"])) == wanted:
            return entry
    raise KeyError(wanted)


def titled(name: str) -> str:
    """A session's name and page size."""
    return name.replace("-", ", page ")


def rates(metrics: dict[str, Any]) -> str:
    """Hit rates of the first steps: a row for each session, capacity and way."""
    weight, rows = metrics["weight"], []
    for name, session in metrics["sessions"].items():
        for size in sorted({entry["capacity"] for entry in session["replays"]}):
            ways = {
                "without": find(session, "importance", size, 0.0, False),
                "with": find(session, "importance", size, weight, False),
                "LRU": find(session, "lru", size, 0.0, False),
                "Belady's MIN": find(session, "belady", size, 0.0, False),
            }
            if any(entry["runners_up"] and entry["capacity"] == size for entry in session["replays"]):
                ways["without, runners-up"] = find(session, "importance", size, 0.0, True)
                ways["with, runners-up"] = find(session, "importance", size, weight, True)
            for way, entry in ways.items():
                first = entry["1"]
                low, high = first["interval"]
                cells = [f"{first['hit_rate']:.3f} ({low:.3f}, {high:.3f})"]
                cells += [f"{entry[span]['hit_rate']:.3f}" for span in list(SPANS)[1:]]
                rows.append([titled(name), f"{size:g}x", way, *cells, f"{entry['missed_first_16']:.1f}"])
    return table(["session", "frames", "pre-warming", *SPANS.values(), "misses, 1 to 16"], rows)


def weights(metrics: dict[str, Any]) -> str:
    """Hit rate of the first step by the weight of the prompt."""
    sessions = metrics["sessions"]
    tried = sorted(
        {
            (entry["capacity"], entry["prewarm"])
            for session in sessions.values()
            for entry in session["replays"]
            if entry["policy"] == "importance" and not entry["runners_up"]
        }
    )
    by_size: dict[float, list[float]] = {}
    for size, weight in tried:
        by_size.setdefault(size, []).append(weight)
    several = {size: found for size, found in by_size.items() if len(found) > 2}
    columns = sorted({weight for found in several.values() for weight in found})
    rows = []
    for name, session in sessions.items():
        for size in several:
            found = (find(session, "importance", size, weight, False) for weight in columns)
            rows.append([titled(name), f"{size:g}x", *(f"{one['1']['hit_rate']:.3f}" for one in found)])
    return table(["session", "frames", *(f"{one:g}" if one else "off" for one in columns)], rows)


def tables(result: dict[str, Any]) -> str:
    """Both of them."""
    metrics = result["metrics"]
    parts = [
        "Share of selected pages with a frame in the decode steps behind prompts that began with cached pages, policy "
        "`importance` and only misses get frames unless it says otherwise; in brackets the 95 % interval over "
        "requests, layers and KV heads. Misses are of a request, layer and KV head, in all of the first 16 steps:",
        rates(metrics),
        "Hit rate of the first step by the weight of a prompt in importance:",
        weights(metrics),
        provenance(result),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Replace what stands between the markers of the page."""
    fill(PAGE, NAME, tables(json.loads((RESULTS / f"{NAME}.json").read_text())))


if __name__ == "__main__":
    main()
