#!/usr/bin/env python3
"""Draw the tables and the plot of docs/benchmarks/locality.md from the results of its fits and runners_up.json.

PYTHONPATH=scripts python -m rendering.locality
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from common.measurement import RESULTS
from rendering.marked_page import fill
from rendering.results import PLOTS, provenance, table

NAME = "locality_smollm2"
SERVED = "locality_coder_cpu"
PAGE = PLOTS / "locality.md"
PLOT = PLOTS / "locality_reselection.svg"
PAGE_SIZES = (16, 32)
LAGS = ("1", "4", "16", "64")


def compared(case: dict[str, Any]) -> str:
    """Statistics of the model and of the process at every budget; all lags and sizes are in the result file."""
    measured = [case[kind][budget] for budget in case["real"] for kind in ("real", "fitted")]
    rows = [
        [f"selected again after {lag}", *(f"{one['reselection'][lag]:.3f}" for one in measured)]
        for lag in LAGS
    ]
    rows.append(["pages never selected", *(f"{one['never_selected']:.3f}" for one in measured)])
    for policy, name in (("lru", "LRU"), ("belady", "Belady")):
        rows += [
            [f"hit rate, {name} {size}x", *(f"{one['hit_rate'][policy][size]:.3f}" for one in measured)]
            for size in measured[0]["hit_rate"][policy]
        ]
    header = [f"{float(budget):.0%} {kind}" for budget in case["real"] for kind in ("model", "process")]
    return table(["budget", *header], rows)


def hit_rates(metrics: dict[str, Any]) -> str:
    """LRU hit rates at 1.25 times the retrieved pages: the process, the process at length, and the texts apart."""
    kinds = {
        "fitted": "process",
        "fitted_long_context": "process, 128K",
        "real": "model",
        "real_greedy": "greedy",
    }
    texts = [name.replace("_", " ") for name in metrics["texts"]]
    rows = []
    for page_size in PAGE_SIZES:
        case = metrics[f"page{page_size}"]
        for budget, apart in case["real_hit_rate_lru_1.25_by_text"].items():
            means = [case[kind][budget]["hit_rate"]["lru"]["1.25"] for kind in kinds]
            rows.append(
                [f"{page_size}, {float(budget):.0%}", *(f"{rate:.3f}" for rate in [*means, *apart.values()])]
            )
    return table(["page, budget", *kinds.values(), *(f"model, {text}" for text in texts)], rows)


def parameters(metrics: dict[str, Any]) -> str:
    """The fitted parameters of each page size."""
    lines = []
    for page_size in PAGE_SIZES:
        found = metrics[f"page{page_size}"]["parameters"]
        lines.append([page_size, found["static"], *found["weights"], found["spread"]])
    periods = metrics[f"page{PAGE_SIZES[0]}"]["parameters"]["periods"]
    return table(["page size", "static", *(f"weight, period {one}" for one in periods), "spread"], lines)


def served(result: dict[str, Any]) -> str:
    """A fit to a served model's long answers: parameters, and each answer beside both fits."""
    metrics = result["metrics"]
    parts = []
    for page_size in PAGE_SIZES:
        case = metrics.get(f"page{page_size}")
        if case is None:
            continue
        found = case["parameters"]
        weights = ", ".join(
            f"{weight} with period {period}"
            for weight, period in zip(found["weights"], found["periods"], strict=True)
        )
        columns = {name.split()[-1].rsplit("-", 1)[0]: one for name, one in case["real"].items()}
        columns |= {"process": case["fitted"], "process of SmolLM2": case[NAME]}
        rows = [
            [
                f"{float(budget):.0%}",
                name,
                *(f"{one[budget]['reselection'][lag]:.3f}" for lag in LAGS),
                *(f"{one[budget]['hit_rate']['lru'][size]:.3f}" for size in ("1.25", "2.0")),
                f"{one[budget]['hit_rate']['belady']['1.25']:.3f}",
            ]
            for budget in case["fitted"]
            for name, one in columns.items()
        ]
        header = [
            "budget",
            "scores of",
            *(f"again after {lag}" for lag in LAGS),
            "LRU 1.25x",
            "2x",
            "Belady 1.25x",
        ]
        parts += [
            f"{case['model']}, {case['pages']} pages of {page_size} tokens, `{case['summary']}`, {metrics['steps']} "
            f"steps. Static {found['static']}; {weights}; spread {found['spread']}.",
            table(header, rows),
        ]
    return "\n\n".join([*parts, provenance(result)])


def tables(result: dict[str, Any]) -> str:
    """Parameters and all statistics."""
    metrics = result["metrics"]
    parts = [parameters(metrics)]
    for page_size in PAGE_SIZES:
        parts += [f"Page size {page_size}:", compared(metrics[f"page{page_size}"])]
    parts += ["LRU caches of 1.25 times the retrieved pages:", hit_rates(metrics)]
    return "\n\n".join([*parts, provenance(result)])


def runners_up(result: dict[str, Any]) -> str:
    """Share of the retrieved pages that is missed with and without runners-up, by source, budget and cache size."""
    rows = []
    for key, sizes in result["metrics"].items():
        source, _, budget = key.rpartition("_")
        if not isinstance(sizes, dict):
            continue
        for size, found in sizes.items():
            fewer = 1 - found["missed_with"] / found["missed_without"]
            rows.append(
                [
                    source,
                    f"{float(budget):.0%}",
                    f"{size}x",
                    f"{found['missed_without']:.2%}",
                    f"{found['missed_with']:.2%}",
                    f"{fewer:.0%}",
                    f"{found['loaded_ahead_with']:.1f}",
                ]
            )
    header = [
        "pages of",
        "budget",
        "frames",
        "missed without",
        "missed with",
        "fewer",
        "loaded before selection",
    ]
    return f"{table(header, rows)}\n\n{provenance(result)}"


def plot(metrics: dict[str, Any]) -> None:
    """Re-selection over the lag, model against process, one panel for each page size."""
    plt.rcParams["svg.hashsalt"] = NAME
    figure, panels = plt.subplots(1, len(PAGE_SIZES), figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, page_size in zip(panels, PAGE_SIZES, strict=True):
        case = metrics[f"page{page_size}"]
        for index, budget in enumerate(case["real"]):
            for kind, name, line in (("real", "model", "o-"), ("fitted", "process", "x--")):
                curve = case[kind][budget]["reselection"]
                label = f"{name}, {float(budget):.0%}"
                panel.plot(
                    [int(lag) for lag in curve], list(curve.values()), line, color=f"C{index}", label=label
                )
        panel.set(title=f"page {page_size}", xlabel="steps before", xscale="log", ylim=(0, 1))
        panel.set_xticks([int(lag) for lag in curve], [str(lag) for lag in curve])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of retrieved pages\nthat were selected then")
    panels[-1].legend(fontsize="small")
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    """Replace what stands between the markers of the page, and the plot."""
    result = json.loads((RESULTS / f"{NAME}.json").read_text())
    ahead = json.loads((RESULTS / "runners_up.json").read_text())
    fill(PAGE, NAME, tables(result))
    fill(PAGE, "runners_up", runners_up(ahead))
    fill(PAGE, SERVED, served(json.loads((RESULTS / f"{SERVED}.json").read_text())))
    plot(result["metrics"])


if __name__ == "__main__":
    main()
