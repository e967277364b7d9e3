"""Sections of docs/results.md on CPUs: attention to host pages and a pure read, and a server without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

VARIANTS = {
    "amx_bf16": "AMX-BF16",
    "avx512_bf16": "AVX512-BF16",
    "avx512f": "AVX-512F",
    "avx2": "AVX2",
    "generic": "plain C++",
}
PICTURE = "cpu_attention.svg"
GOAL = 0.8
"""Of a pure read's GB/s."""


def measured(metrics: dict[str, float]) -> tuple[list[int], list[int], list[str]]:
    """Thread counts, group sizes and variants that were measured."""
    found = [match for key in metrics if (match := re.fullmatch(r"(\w+)_gbps_(\d+)t_g(\d+)", key))]
    isas = {match[1] for match in found}
    threads, groups = (sorted({int(match[part]) for match in found}) for part in (2, 3))
    return threads, groups, [isa for isa in VARIANTS if isa in isas]


def share_rows(metrics: dict[str, float]) -> list[list[Any]]:
    """One row for each group size and variant: GB/s of a pure read's, by threads."""
    threads, groups, isas = measured(metrics)
    return [
        [group, VARIANTS[isa]]
        + [
            f"{metrics[f'{isa}_gbps_{count}t_g{group}'] / metrics[f'read_gbps_{count}t']:.2f}"
            for count in threads
        ]
        for group in groups
        for isa in isas
    ]


def cpu_attention(result: dict[str, Any], table: Any, provenance: Any, plots: Path) -> str:
    """Section on the CPU kernel."""
    metrics = result["metrics"]
    threads = measured(metrics)[0]
    plot_cpu_attention(metrics, plots / PICTURE)
    groups = measured(metrics)[1]
    shares = ", ".join(f"{metrics[f'bw_frac_all_cores_g{group}']:.2f} at group {group}" for group in groups)
    calls = {key.split("_")[1]: us for key, us in metrics.items() if re.fullmatch(r"us_\d+_pages_g4", key)}
    return "\n\n".join(
        [
            "## Attention on the CPU",
            f"{result['shape']}. Scattered pages, other ones in every call. K and V are read once for a whole group of "
            "query heads. GB/s of K and V as a share of those of a pure read of the same pages on the same threads:",
            table(
                ["group", "variant", *(f"{count} thread{'s' * (count > 1)}" for count in threads)],
                share_rows(metrics),
            ),
            f"![GB/s by threads](benchmarks/{PICTURE})",
            f"On all cores, the variants that were chosen, as a server chooses one at its start, reach {shares} of a "
            f"read's (the goal is {GOAL:.2f}); that of group 4 attends "
            f"{metrics['gbps_all_cores_g4']:.0f} GB/s and is {metrics['speedup_vs_torch']:.0f} times as fast as the "
            "torch reference. A call takes "
            + ", ".join(f"{us:.0f} us for {pages} pages" for pages, us in calls.items())
            + f". Relative error against float64: {metrics['rel_err_fp32']:.1e} in float32, "
            f"{metrics['rel_err_bf16']:.1e} in bfloat16.",
            provenance(result),
        ]
    )


def plot_cpu_attention(metrics: dict[str, float], path: Path) -> None:
    """GB/s over threads, a panel for each group size, with the pure read."""
    threads, groups, isas = measured(metrics)
    figure, panels = plt.subplots(1, len(groups), figsize=(9.5, 3), sharey=True)
    read = [metrics[f"read_gbps_{count}t"] for count in threads]
    for axes, group in zip(panels, groups, strict=True):
        axes.plot(threads, read, color="black", linestyle="--", label="pure read")
        for isa in isas:
            rates = [metrics[f"{isa}_gbps_{count}t_g{group}"] for count in threads]
            axes.plot(threads, rates, marker="o", markersize=3, label=VARIANTS[isa])
        axes.set(xlabel="threads", title=f"{group} quer{'ies' if group > 1 else 'y'} to a KV head")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("GB/s of K and V")
    panels[-1].legend(loc="upper left", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def cpu_server(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on a server without a GPU."""
    metrics = result["metrics"]
    names = {"torch": "torch reference", "kernel": "C++ kernel"}
    return "\n\n".join(
        [
            "## A server without a GPU",
            f"SmolLM2-135M-Instruct in bfloat16, prompts of {metrics['prompt_tokens']} tokens of real text, a budget "
            f"of {metrics['config']['budget_ratio']:.0%} and frames for {metrics['config']['frame_pool_tokens']} "
            "tokens, so that most selected pages are missed. Two servers that answer in turns; gaps between tokens, "
            "median, by what attends the misses:",
            table(
                ["misses attended by", "ms a token", "hit rate"],
                [
                    [name, f"{metrics[key]['tpot_ms']:.0f}", metrics[key]["hit_rate"]]
                    for key, name in names.items()
                ],
            ),
            f"The kernel's time is {metrics['tpot_ratio_kernel_vs_torch']:.2f} of the reference's in a turn.",
            provenance(result),
        ]
    )
