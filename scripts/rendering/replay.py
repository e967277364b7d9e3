#!/usr/bin/env python3
"""Draw the tables and the plots of docs/traces.md from replay_cpu.json and replay_coder_cpu.json.

PYTHONPATH=scripts python -m rendering.replay
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from common.measurement import REPOSITORY, RESULTS
from rendering.marked_page import fill
from rendering.results import PLOTS, provenance, table
from rheo_sglang.replay.plots import draw_hit_rates

NAME = "replay_cpu"
CODER = "replay_coder_cpu"
PAGE = REPOSITORY / "docs" / "traces.md"
PLOT = PLOTS / "replay_hit_rates.svg"
LENGTH_PLOT = PLOTS / "replay_by_length.svg"
BELADY, LRU = "belady", "lru"


def find(session: dict[str, Any], policy: str, capacity: float, ahead: bool = False) -> dict[str, Any] | None:
    """One replay of a session; None if it was not replayed."""
    for entry in session["replays"]:
        if (entry["policy"], entry["capacity"]) == (policy, capacity) and bool(entry["runners_up"]) == ahead:
            return entry
    return None


def policies(metrics: dict[str, Any]) -> list[str]:
    """Those that were replayed, Belady's last."""
    found = dict.fromkeys(entry["policy"] for one in metrics.values() for entry in one["replays"])
    return [*(name for name in found if name != BELADY), BELADY]


def capacities(metrics: dict[str, Any]) -> list[float]:
    """Those that were replayed."""
    return sorted({entry["capacity"] for one in metrics.values() for entry in one["replays"]})


def hit_rates(metrics: dict[str, Any]) -> str:
    """Page hit rates where only misses get frames: a row for each session and policy."""
    sizes = capacities(metrics)
    rows = []
    for name, session in metrics.items():
        for policy in policies(metrics):
            cells = []
            for size in sizes:
                cells.append(_rate(find(session, policy, size)))
            if any(cell != "-" for cell in cells):
                rows.append([name.replace("-", ", page "), policy, *cells])
    return table(["session", "policy", *(f"{size:g}x" for size in sizes)], rows)


def of_the_way(metrics: dict[str, Any]) -> str:
    """How much of the way from LRU to Belady's MIN policies go, and the pages that they move relative to LRU."""
    chosen = [name for name in policies(metrics) if name not in (LRU, BELADY)]
    sizes = sorted({e["capacity"] for one in metrics.values() for e in one["replays"] if e["runners_up"]})
    rows = []
    for name, session in metrics.items():
        for policy in chosen:
            cells = []
            for size in sizes:
                base, best = find(session, LRU, size), find(session, BELADY, size)
                assert base is not None and best is not None
                gap = best["page_hit_rate"] - base["page_hit_rate"]
                for ahead in (False, True):
                    entry = find(session, policy, size, ahead)
                    if entry is None:
                        cells.append("-")
                        continue
                    way = (entry["page_hit_rate"] - base["page_hit_rate"]) / gap
                    cells.append(f"{way:.2f} at {entry['traffic'] / base['traffic']:.1f}x")
            if any(cell != "-" for cell in cells):
                rows.append([name.replace("-", ", page "), policy, *cells])
    header = [f"{size:g}x{with_them}" for size in sizes for with_them in ("", ", runners-up")]
    return table(["session", "policy", *header], rows)


def sessions(metrics: dict[str, Any]) -> str:
    """What was traced, the Jaccard index, and by how much importance has fewer misses than LRU."""
    rows = []
    for name, one in metrics.items():
        low, high = one["jaccard"]["over_heads"]
        prompts = one["prompt_tokens"]
        length = (
            f"{prompts[0]}" if len(prompts) == 1 else f"{len(prompts)} of {min(prompts)} to {max(prompts)}"
        )
        above = []
        for size in (1.25, 2.5):
            base, entry = find(one, LRU, size), find(one, "importance", size)
            assert base is not None and entry is not None
            above.append(f"{entry['page_hit_rate'] / base['page_hit_rate'] - 1:+.1%}")
        rows.append(
            [
                name.replace("-", ", page "),
                length,
                sum(one["steps"].values()),
                f"{one['server_page_hit_rate']:.3f}",
                f"{one['jaccard']['mean']:.2f} ({low:.2f}, {high:.2f})",
                *above,
            ]
        )
    header = ["session", "prompts, tokens", "steps", "hit rate of the server", "Jaccard of the best 10 %"]
    return table([*header, "importance above LRU, 1.25x", "2.5x"], rows)


def by_length(result: dict[str, Any]) -> str:
    """Sessions with documents of several lengths: what was traced, and hit rates where only misses get frames."""
    metrics = result["metrics"]
    names = policies(metrics)
    traced, rates, above = [], [], []
    for name, one in metrics.items():
        session = [name.split("-")[0], max(one["prompt_tokens"])]
        low, high = one["jaccard"]["over_heads"]
        traced.append(
            [
                *session,
                one["dtype"],
                len(one["prompt_tokens"]),
                sum(one["steps"].values()),
                f"{one['server_page_hit_rate']:.3f}",
                f"{one['jaccard']['mean']:.2f} ({low:.2f}, {high:.2f})",
            ]
        )
        for size in capacities(metrics):
            found = {policy: find(one, policy, size) for policy in names}
            case = [*session, f"{size:g}x"]
            rates.append([*case, *(_rate(entry) for entry in found.values())])
            above.append([*case, *(_above_lru(found[policy]) for policy in names if policy != LRU)])
    entry = next(iter(metrics.values()))
    header = ["session", "longest prompt, tokens"]
    parts = [
        f"{entry['model']}, pages of {entry['page_size']} tokens, summary "
        f"`{entry['summary']}`, budget {entry['budget_ratio']:.0%}:",
        table(
            [*header, "in", "prompts", "steps", "hit rate of the server", "Jaccard of the best 10 %"], traced
        ),
        "Share of selected pages with a frame, where only misses get one; in brackets the 95 % interval over requests, "
        "layers and KV heads:",
        table([*header, "frames", *names], rates),
        "Points of hit rate above LRU:",
        table([*header, "frames", *(policy for policy in names if policy != LRU)], above),
        provenance(result),
    ]
    return "\n\n".join(parts)


def _rate(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    low, high = entry["interval"]
    return f"{entry['page_hit_rate']:.3f} ({low:.3f}, {high:.3f})"


def _above_lru(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    low, high = entry["above_lru_interval"]
    return f"{100 * entry['above_lru']:+.2f} ({100 * low:+.2f}, {100 * high:+.2f})"


def tables(result: dict[str, Any]) -> str:
    """All of them."""
    metrics = result["metrics"]
    parts = [
        sessions(metrics),
        "Share of selected pages with a frame, where only misses get one; in brackets the 95 % interval over requests, "
        "layers and KV heads:",
        hit_rates(metrics),
        "Part of the way from LRU to Belady's MIN, and pages that cross the bus relative to LRU's. Both ends are those "
        "without runners-up:",
        of_the_way(metrics),
        provenance(result),
    ]
    return "\n\n".join(parts)


def plot(metrics: dict[str, Any]) -> None:
    """Hit rate against capacity, a panel for each session."""
    plt.rcParams["svg.hashsalt"] = NAME
    across = min(len(metrics), 4)
    down = -(-len(metrics) // across)
    figure, panels = plt.subplots(
        down, across, figsize=(3.4 * across, 3.4 * down), squeeze=False, sharex=True, layout="constrained"
    )
    for panel in panels.flat[len(metrics) :]:
        panel.set_axis_off()
    for panel, (name, session) in zip(panels.flat, metrics.items(), strict=False):
        draw_hit_rates([entry for entry in session["replays"] if not entry["runners_up"]], panel)
        panel.set_title(name.replace("-", ", page "), fontsize="medium")
    panels[0][0].set_ylabel("share of selected pages with a frame")
    panels[0][-1].legend(fontsize="small")
    figure.savefig(PLOT, metadata={"Date": None})


def plot_by_length(metrics: dict[str, Any]) -> None:
    """Hit rate against the longest prompt, a panel for each capacity, three policies of each kind of session."""
    plt.rcParams["svg.hashsalt"] = CODER
    sizes = capacities(metrics)
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(4.6 * len(sizes), 3.8), squeeze=False, sharey=True, layout="constrained"
    )
    kinds = dict.fromkeys(name.split("-")[0] for name in metrics)
    styles = {LRU: ":", "importance": "-", BELADY: "--"}
    for panel, size in zip(panels.flat, sizes, strict=True):
        for colour, kind in enumerate(kinds):
            of_kind = [one for name, one in metrics.items() if name.startswith(f"{kind}-")]
            of_kind.sort(key=lambda one: max(one["prompt_tokens"]))
            for policy, style in styles.items():
                found = [(max(one["prompt_tokens"]), find(one, policy, size)) for one in of_kind]
                points = [(tokens, entry["page_hit_rate"]) for tokens, entry in found if entry is not None]
                panel.plot(*zip(*points, strict=True), f"C{colour}{style}", marker=".")
        panel.set_xscale("log", base=2)
        panel.set_xticks([1024 * 2**power for power in range(6)], [f"{2**power}K" for power in range(6)])
        panel.minorticks_off()
        panel.set_xlim(1000, 34000)
        panel.set_title(f"frames for {size:g} times the selection", fontsize="medium")
        panel.set_xlabel("longest prompt, tokens")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("share of selected pages with a frame")
    for colour, kind in enumerate(kinds):
        panels[0][-1].plot([], [], f"C{colour}-", label=kind)
    for policy, style in styles.items():
        panels[0][-1].plot([], [], style, color="grey", label=policy)
    panels[0][-1].legend(fontsize="small")
    figure.savefig(LENGTH_PLOT, metadata={"Date": None})


def main() -> None:
    """Replace what stands between the markers of the page, and the plot."""
    result = json.loads((RESULTS / f"{NAME}.json").read_text())
    fill(PAGE, NAME, tables(result))
    coder = json.loads((RESULTS / f"{CODER}.json").read_text())
    fill(PAGE, CODER, by_length(coder))
    plot(result["metrics"])
    plot_by_length(coder["metrics"])


if __name__ == "__main__":
    main()
