"""Sections of docs/results.md on speed: time per output token, and where misses are attended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

CONTEXTS = {"128k": "128K", "32k": "32K", "2k": "2K"}
ENGINES = {
    "fa3": "SGLang fa3",
    "resident": "rheo, whole KV resident, 8 % selected",
    "default": "rheo, whole KV resident, default budget",
    "10pct": "rheo, frames for 10 %, 8 % selected",
    "10pct-raw": "rheo, frames for 10 %, 8 % selected, auto, random scores",
    "10pct-select4": "rheo, frames for 10 %, 4 % selected",
    "10pct-select4-raw": "rheo, frames for 10 %, 4 % selected, auto, random scores",
    "exact": "rheo, frames for 10 %, all selected, auto",
}
MISS_MODES = ("fetch", "split", "auto")
WAYS = {"raw": "auto, random scores"}
PARTS = {
    "attend": ("attend", "_merge", "_attend"),
    "select": ("select_resolve",),
    "score": ("_score", "_locality_scores"),
    "append": ("_append",),
    "importance, admission, filling (other streams)": (
        "_rank",
        "_fold",
        "_gather_misses",
        "_value_frames",
        "_admit",
        "_fill",
        "_load",
        "load",
    ),
}


def tpot_rows(metrics: dict[str, Any]) -> list[list[Any]]:
    """One row per engine and batch: milliseconds, ratio to fa3, hit rate, when both work, time to first token."""
    rows = []
    dense = metrics.get("fa3", {})
    for engine, cases in metrics.items():
        if not isinstance(cases, dict):
            continue
        for label, case in cases.items():
            if not isinstance(case, dict) or "tpot_ms" not in case or label.endswith("_cold"):
                continue
            context, batch, *scores = label.split("_")
            baseline = dense.get(f"{context}_{batch}", {}).get("tpot_ms")
            name = ENGINES[engine.replace(f"-{batch}", "")]
            cold = cases.get(f"{context}_{batch}_cold", {}).get("ttft_s")
            rows.append(
                [
                    CONTEXTS[context],
                    int(batch.removeprefix("bs")),
                    name + (f", {WAYS.get(scores[0], scores[0])}" if scores else ""),
                    f"{case['tpot_ms']:.2f}",
                    f"{case['tpot_ms'] / baseline:.2f}" if baseline else "",
                    f"{case['hit_rate']:.3f}" if case.get("hit_rate") else "",
                    f"{max(case['both_worked_share_of_step'], 0):.0%}"
                    if case.get("layers_with_a_cpu_part")
                    else "",
                    f"{cold:.2f}" if cold is not None else "",
                ]
            )
    return sorted(rows, key=lambda row: (list(CONTEXTS.values()).index(row[0]), row[1]))


def profile_rows(profile: dict[str, Any]) -> list[list[Any]]:
    """Microseconds of a step by part; kernels that overlap count in full."""
    left = dict(profile["kernels"])
    rows = []
    for part, names in PARTS.items():
        mine = [name for name in left if name.startswith(names)]
        rows.append([part, round(sum(left.pop(name)["us_per_step"] for name in mine))])
    rows.append(
        [
            "everything but attention: weights, norms, sampling",
            round(sum(k["us_per_step"] for k in left.values())),
        ]
    )
    rows.append(["no kernel runs", round(profile["idle_us_per_step"])])
    rows.append(["the step", round(profile["us_per_step"])])
    return rows


def tpot(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on the time per output token."""
    metrics = result["metrics"]
    profile = metrics["resident"]["128k_bs1_profile"]
    return "\n\n".join(
        [
            "## Time per output token",
            f"{metrics['shape']}'s shape, {metrics['weights']}, random prompts; all engines on one machine, one after "
            "the other. Gaps between tokens, median. With frames for 10 % of the KV, page scores come from a process "
            "whose locality is that of SmolLM2 ([locality.md](benchmarks/locality.md); [a larger "
            "model](benchmarks/locality.md#a-larger-model-behind-20k-tokens) misses more), except for *random scores*, "
            "which are what random weights give: their selection hardly repeats. *fetch*, *split* and *auto* say where "
            "misses are attended; *both work* is the share of the step in which GPU and CPU attend at once. Time to "
            "first token is that of the prompt's first run; fa3's at 128K includes what it compiles.",
            table(
                ["context", "batch", "engine", "ms", "of fa3", "hit rate", "both work", "first token, s"],
                tpot_rows(metrics),
            ),
            "Where one decode step goes (128K tokens, batch 1, whole KV resident; microseconds of GPU time by kernel, "
            "under the profiler). Kernels that overlap on several streams count in full, so the parts add up to more "
            "than the step; `attend` counts from its early launch.",
            table(["part", "us a step"], profile_rows(profile)),
            provenance(result),
        ]
    )


def tpot_select4(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on the time per output token where 4 % are selected."""
    return "\n\n".join(
        [
            "## Time per output token, 4 % selected",
            "A later run than that of the table above: scores are launched first, misses are divided by what they took "
            "of late, and fewer runners-up are offered frames. Otherwise as above; rows of one context and batch share "
            "their fa3.",
            table(
                ["context", "batch", "engine", "ms", "of fa3", "hit rate", "both work", "first token, s"],
                tpot_rows(result["metrics"]),
            ),
            provenance(result),
        ]
    )


def tpot_default(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on the time per output token with default settings: estimates and a tail."""
    return "\n\n".join(
        [
            "## Time per output token, default settings",
            "Sub-centroids of four tokens, 4 % selected, the rest attended by its estimates; the whole KV is resident. "
            "`summarise_tails` still ran once a layer in this run; it has run once a step since, not timed again.",
            table(
                ["context", "batch", "engine", "ms", "of fa3", "hit rate", "both work", "first token, s"],
                tpot_rows(result["metrics"]),
            ),
            provenance(result),
        ]
    )


def several_gpus(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on the time per output token of two GPUs."""
    one, two = (result["metrics"][name] for name in ("default", "default-tp2"))
    rows = []
    for label, case in two.items():
        if not isinstance(case, dict) or "tpot_ms" not in case or label.endswith("_cold"):
            continue
        context, batch = label.split("_")
        ratio = case["tpot_ms"] / one[label]["tpot_ms"]
        times = [f"{found[label]['tpot_ms']:.2f}" for found in (one, two)]
        rows.append([CONTEXTS[context], int(batch.removeprefix("bs")), *times, f"{ratio:.3f}"])
    return "\n\n".join(
        [
            "## Two GPUs",
            "Default settings and the whole KV resident, as above: `--tp-size 2` against one GPU. What each rank does "
            "for itself halves, its launches and the all-reduces of a layer do not.",
            table(["context", "batch", "one GPU, ms", "two, ms", "ratio"], rows),
            provenance(result),
        ]
    )


def miss_path(result: dict[str, Any], table: Any, provenance: Any, plots: Path) -> str:
    """Section on fetching misses, attending them on the CPU, and both."""
    metrics = result["metrics"]
    tags = [key.removeprefix("missed_mib_") for key in metrics if key.startswith("missed_mib_")]
    rows = []
    for tag in tags:
        batch, share = tag.split("_")
        rows.append(
            [
                int(batch.removeprefix("bs")),
                f"{share.removesuffix('pct')} %",
                f"{metrics[f'missed_mib_{tag}']:.1f}",
                *(f"{metrics[f'{mode}_us_{tag}']:.0f}" for mode in MISS_MODES),
                f"{metrics[f'auto_cpu_share_{tag}']:.2f}",
                f"{metrics[f'auto_vs_better_{tag}']:.2f}",
            ]
        )
    plot_miss_path(metrics, tags, plots / "miss_path.svg")
    costs = {
        key.removeprefix("cost_").removesuffix("_us"): value
        for key, value in metrics.items()
        if "cost_" in key
    }
    return "\n\n".join(
        [
            "## Where misses are attended",
            f"{result['shape']}. Microseconds of one layer's attention, hits and merge included, by the share of the "
            "selected pages that is missed.",
            table(
                ["batch", "missed", "MiB", *MISS_MODES, "CPU's share in auto", "auto / better of both"], rows
            ),
            "![Time of a layer's attention by what is missed](benchmarks/miss_path.svg)",
            "Costs that the division rests on, as measured at the start: "
            + ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in costs.items())
            + " (us; the slowdown is a factor).",
            provenance(result),
        ]
    )


def plot_miss_path(metrics: dict[str, float], tags: list[str], path: Path) -> None:
    """Time over missed MiB, a panel per batch size."""
    batches = sorted({int(tag.split("_")[0].removeprefix("bs")) for tag in tags})
    figure, panels = plt.subplots(1, len(batches), figsize=(3.4 * len(batches), 3))
    for axes, batch in zip(np.atleast_1d(panels), batches, strict=True):
        mine = [tag for tag in tags if tag.startswith(f"bs{batch}_")]
        missed = [metrics[f"missed_mib_{tag}"] for tag in mine]
        for mode in MISS_MODES:
            axes.plot(
                missed, [metrics[f"{mode}_us_{tag}"] for tag in mine], marker="o", markersize=3, label=mode
            )
        axes.set(xlabel="MiB missed", title=f"batch {batch}")
        axes.grid(alpha=0.3)
    np.atleast_1d(panels)[0].set_ylabel("us a layer")
    np.atleast_1d(panels)[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
