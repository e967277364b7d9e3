"""Plots of replays: hit rate and traffic against capacity, a line for each policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

BOUND_STYLE = {"color": "black", "linestyle": "--"}
"""Of Belady's bound."""


def draw_hit_rates(entries: Sequence[dict[str, Any]], panel: Any) -> None:
    """Draw the page hit rate of every policy against capacity, with its interval, into a panel of matplotlib."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["capacity"] is not None:
            lines.setdefault(entry["policy"], []).append(entry)
    for index, (policy, found) in enumerate(lines.items()):
        found = sorted(found, key=lambda entry: float(entry["capacity"]))
        capacities = [entry["capacity"] for entry in found]
        style: dict[str, Any] = dict(BOUND_STYLE) if policy == "belady" else {"color": f"C{index}"}
        panel.plot(capacities, [entry["page_hit_rate"] for entry in found], "o", label=policy, ms=3, **style)
        panel.lines[-1].set_linestyle(style.get("linestyle", "-"))
        if all(entry["interval"] for entry in found):
            low, high = zip(*(entry["interval"] for entry in found), strict=True)
            panel.fill_between(capacities, low, high, color=style["color"], alpha=0.12, linewidth=0)
    panel.set(xlabel="frames / largest selection of a step")
    panel.grid(alpha=0.3)


def plot_hit_rates(entries: Sequence[dict[str, Any]], manifest: dict[str, Any], path: Path) -> None:
    """Write a plot with a panel for each budget and number of runners-up."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys((entry["budget"], entry["runners_up"]) for entry in entries))
    width = 5.2 * len(kinds)
    figure, panels = plt.subplots(1, len(kinds), figsize=(width, 4), squeeze=False, layout="constrained")
    for (budget, runners_up), panel in zip(kinds, panels[0], strict=True):
        found = [one for one in entries if (one["budget"], one["runners_up"]) == (budget, runners_up)]
        draw_hit_rates(found, panel)
        chosen = "as traced" if budget is None else f"budget {budget:g}"
        panel.set_title(
            f"{manifest['model']}, page {manifest['page_size']}, {chosen}, {runners_up} runners-up"
        )
    panels[0][0].set_ylabel("share of selected pages with a frame")
    panels[0][-1].legend(fontsize="small")
    figure.savefig(path, **({"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 150}))
    plt.close(figure)
