#!/usr/bin/env python3
"""Draw the tables of docs/kernels.md from docs/benchmarks/results/kernels_gpu.json.

PYTHONPATH=scripts python -m rendering.kernel_table
"""

from __future__ import annotations

import json
from typing import Any

from common.measurement import REPOSITORY, RESULTS
from rendering.marked_page import fill

PAGE = REPOSITORY / "docs" / "kernels.md"
BATCHES, CONTEXTS = (1, 4, 8, 32), ("8k", "32k", "128k")


def kernel_names(metrics: dict[str, float]) -> list[str]:
    """Kernels in the order they were measured."""
    suffix = f"_us_bs{BATCHES[0]}_{CONTEXTS[0]}"
    return [key.removesuffix(suffix) for key in metrics if key.endswith(suffix)]


def cell(metrics: dict[str, float], kernel: str, tag: str) -> str:
    """Time, bytes and fraction of one measurement, or a dash where there is none."""
    if f"{kernel}_us_{tag}" not in metrics:
        return "-"
    if f"{kernel}_mb_{tag}" not in metrics:
        return f"{metrics[f'{kernel}_us_{tag}']:.1f}"
    us, moved, share = (metrics[f"{kernel}_{what}_{tag}"] for what in ("us", "mb", "bw_frac"))
    return f"{us:.1f} / {moved:.{0 if moved >= 100 else 2}f} / {share:.2f}"


def tables(result: dict[str, Any]) -> str:
    """One table per context: a row per kernel, a column per batch size."""
    metrics = result["metrics"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts = [
        f"Measured {result['date']} on {result['machine']} ({versions}) with `{result['command']}`: "
        f"{result['shape']}. In this run a device copy moves {metrics['device_copy_gbps']:.0f} GB/s (read and "
        f"written), a pinned copy {metrics['pinned_h2d_gbps']:.1f} GB/s to the device and "
        f"{metrics['pinned_d2h_gbps']:.1f} GB/s from it. Each cell is microseconds / MB that must move / fraction "
        "of the copy's bandwidth; `fa3` is FlashAttention-3's decode over as many tokens as the step attends, alone."
    ]
    for context in CONTEXTS:
        header = [f"{context.upper()} tokens", *(f"batch {batch}" for batch in BATCHES)]
        rows = [
            [f"`{kernel}`", *(cell(metrics, kernel, f"bs{batch}_{context}") for batch in BATCHES)]
            for kernel in kernel_names(metrics)
        ]
        lines = [header, ["---", *("---:" for _ in BATCHES)], *rows]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)


def tables_of_results() -> str:
    """The tables of the run that is kept."""
    return tables(json.loads((RESULTS / "kernels_gpu.json").read_text()))


if __name__ == "__main__":
    fill(PAGE, "kernels_gpu", tables_of_results())
