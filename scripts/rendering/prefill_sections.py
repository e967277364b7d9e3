"""Sections of docs/results.md on prefill: time to first token, prefixes in DRAM, and prompts of 512K and 1M tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

ENGINES = {
    "fa3": "SGLang fa3",
    "rheo": "rheo, frames for 10 %",
    "hicache": "HiCache, kernels",
    "hicache-direct": "HiCache, copy engines",
}
LENGTHS = ("8k", "32k", "128k")
PREFIXES = {"recomputed": "computed again", "resident": "in HBM", "dram": "in DRAM alone"}
PICTURE = "prefill.svg"


def cold_rows(metrics: dict[str, Any]) -> list[list[Any]]:
    """One row per engine: seconds to the first token, and throughput of fa3's, by length."""
    rows = []
    for engine, name in ENGINES.items():
        cases = metrics[engine]
        row: list[Any] = [name]
        for length in LENGTHS:
            mine, dense = cases[f"cold_{length}"], metrics["fa3"][f"cold_{length}"]
            ratio = mine["tokens_per_s"] / dense["tokens_per_s"]
            row += [f"{mine['ttft_s']:.2f}", f"{ratio:.2f}"]
        rows.append(row)
    return rows


def prefixes(metrics: dict[str, Any]) -> list[tuple[str, float]]:
    """Seconds to the first token of a prompt at the longest length, by engine and where its prefix is."""
    return [
        (f"{name}, {where}", metrics[engine][f"prefix_{label}"]["ttft_s"])
        for engine, name in ENGINES.items()
        for label, where in PREFIXES.items()
        if f"prefix_{label}" in metrics[engine]
    ]


def prefill(result: dict[str, Any], table: Any, provenance: Any, plots: Path) -> str:
    """Section on the time to the first token and on prompts longer than HBM's share."""
    metrics = result["metrics"]
    long, decode = metrics["prefill_512k"], metrics["decode_1m"]
    prefix = metrics["rheo"]["prefix_dram"]
    plot_prefill(metrics, plots / PICTURE)
    parts = {
        "frames": "frames_gib",
        "page table and summaries": "page_table_and_summaries_gib",
        "staging, two layers of the prompt, at most": "staging_bound_gib",
        "KV in all, promised": "promised_kv_hbm_gib",
        "KV in all, at the peak": "peak_kv_hbm_gib",
    }
    return "\n\n".join(
        [
            "## Time to first token",
            f"{metrics['ttft_shape']}'s shape, weights {metrics['weights']}, random prompts, one at a time; seconds, "
            f"median of three. rheo has frames for {metrics['frame_pool_tokens']} tokens.",
            table(
                [
                    "engine",
                    *(column for length in LENGTHS for column in (length.upper(), "throughput of fa3")),
                ],
                cold_rows(metrics),
            ),
            f"Prompts of {prefix['prompt_tokens']} tokens that share their first {prefix['prefix_tokens']} with one "
            "before, by where these are:",
            table(
                ["engine, prefix", "seconds"],
                [[label, f"{seconds:.2f}"] for label, seconds in prefixes(metrics)],
            ),
            f"![Time to first token by where the prefix is, and time of a chunk by its place in a prompt of "
            f"{long['prompt_tokens']} tokens](benchmarks/{PICTURE})",
            "## Prompts beyond HBM's share",
            f"{metrics['long_context_shape']}'s shape, weights {metrics['weights']}, frames of "
            f"{metrics['long_context_config']['frame_pool_gib']} GiB. A prompt of {long['prompt_tokens']} tokens, "
            f"attended densely, took {long['prefill_s']:.0f} s. HBM for KV:",
            table(["part", "GiB"], [[part, f"{long[key]:.2f}"] for part, key in parts.items()]),
            f"Decode after {decode['prompt_tokens']} tokens takes {metrics['tpot_ms_1m']:.1f} ms a token at a budget "
            f"of {metrics['long_context_config']['budget_ratio']:.0%}, with page scores of SmolLM2's locality (hit "
            f"rate {decode['fitted']['hit_rate']:.3f}). Their KV was seeded in {decode['prefill_s']:.0f} s: every "
            f"chunk of the prompt attended to itself alone. HBM for KV was {metrics['kv_hbm_gib_1m']:.1f} GiB at the "
            f"peak, up to {decode['staging_bound_gib']:.1f} of them staging, which decode does not need.",
            provenance(result),
        ]
    )


def plot_prefill(metrics: dict[str, Any], path: Path) -> None:
    """Seconds to the first token after a prefix, and seconds of each chunk of the long prompt."""
    figure, (bars, line) = plt.subplots(1, 2, figsize=(9.5, 3), gridspec_kw={"width_ratios": (3, 2)})
    labels, seconds = zip(*prefixes(metrics), strict=True)
    drawn = bars.barh(labels, seconds)
    bars.bar_label(drawn, fmt="%.2f", padding=2)
    bars.invert_yaxis()
    bars.set(xlabel="seconds to the first token", xlim=(0, 1.2 * max(seconds)))
    chunks = metrics["prefill_512k"]["chunks"]
    ends = np.cumsum([chunk["tokens"] for chunk in chunks]) / 1024
    line.plot(ends, [chunk["s"] for chunk in chunks], marker="o", markersize=3)
    line.set(xlabel="prompt, K tokens", ylabel=f"seconds a chunk of {chunks[0]['tokens']}", ylim=(0, None))
    line.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
