#!/usr/bin/env python3
"""Draw the table and the plot of docs/traces.md on attention that is known afterwards, from post_hoc_cpu.json.

PYTHONPATH=scripts python -m rendering.post_hoc
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from common.measurement import RESULTS
from rendering.marked_page import fill
from rendering.replay import PAGE
from rendering.results import PLOTS, provenance, table

NAME = "post_hoc_cpu"
PLOT = PLOTS / "post_hoc.svg"


def tables(result: dict[str, Any]) -> str:
    """Hit rates by signal, their ratio to those by estimates, and rank correlations."""
    metrics = result["metrics"]
    rows, sizes = [], []
    for name, session in metrics["sessions"].items():
        for signal, rates in session["hit_rate"].items():
            sizes = list(rates)
            quality = session["quality"].get(signal)
            correlation = session["rank_correlation"].get(signal)
            rows.append(
                [
                    name,
                    "LRU, no signal" if signal == "lru" else signal,
                    *(f"{rates[size]:.3f}" for size in sizes),
                    *(f"{quality[size]:.3f}" if quality else "-" for size in sizes),
                    "-" if correlation is None else f"{correlation:.2f}",
                ]
            )
    header = ["session", "worth follows", *(f"hit rate, {size}x" for size in sizes)]
    header += [*(f"of that by estimates, {size}x" for size in sizes), "rank correlation"]
    return "\n\n".join([table(header, rows), provenance(result)])


def plot(metrics: dict[str, Any]) -> None:
    """Hit rates by session and signal, a panel for each capacity, and rank correlations."""
    plt.rcParams["svg.hashsalt"] = NAME
    sessions = metrics["sessions"]
    signals = list(next(iter(sessions.values()))["hit_rate"])
    sizes = list(next(iter(sessions.values()))["hit_rate"][signals[0]])
    place = np.arange(len(sessions))
    figure, panels = plt.subplots(
        1, len(sizes) + 1, figsize=(3.6 * (len(sizes) + 1), 3.4), layout="constrained"
    )
    for number, signal in enumerate(signals):
        offset = (number - len(signals) / 2 + 0.5) * 0.16
        for panel, size in zip(panels, sizes, strict=False):
            heights = [one["hit_rate"][signal][size] for one in sessions.values()]
            panel.bar(place + offset, heights, 0.15, label=signal, color=f"C{number}")
            panel.set_title(f"hit rate, frames for {size}x", fontsize="medium")
        if signal in next(iter(sessions.values()))["rank_correlation"]:
            heights = [one["rank_correlation"][signal] for one in sessions.values()]
            panels[-1].bar(place + offset, heights, 0.15, color=f"C{number}")
    panels[-1].set_title("rank correlation with the estimates", fontsize="medium")
    for panel in panels:
        panel.set_xticks(place, list(sessions))
    for panel in panels[:-1]:
        panel.set_ylim(0.6, 1.0)
    panels[0].legend(fontsize="x-small", loc="lower right")
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    """Replace what stands between the markers of the page, and the plot."""
    result = json.loads((RESULTS / f"{NAME}.json").read_text())
    fill(PAGE, NAME, tables(result))
    plot(result["metrics"])


if __name__ == "__main__":
    main()
