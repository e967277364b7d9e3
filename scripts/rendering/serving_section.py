"""Sections of docs/results.md on the throughput that clients see: of engines, and of rheo with other settings."""

from __future__ import annotations

import statistics
from typing import Any

ENGINES = {
    "fa3": "fa3",
    "hicache": "fa3 with HiCache",
    "rheo": "rheo",
}


HEADER = [
    "engine",
    "tokens an answer",
    "tokens/s",
    "requests/s",
    "TPOT ms",
    "P99 gap ms",
    "first token s",
    "scheduler's tokens/s",
]
VARIANTS = {"rheo": "rheo", "rheo_fp8": "rheo, KV in 8 bits"}


def rows_of(metrics: dict[str, Any], engines: dict[str, str]) -> list[list[Any]]:
    """One row for each engine and length of answers."""
    return [
        [
            label,
            int(tokens),
            f"{run['output_throughput']:.0f}",
            f"{run['request_throughput']:.2f}",
            f"{run['median_tpot_ms']:.2f}",
            f"{run['p99_itl_ms']:.1f}",
            f"{run['median_ttft_ms'] / 1e3:.1f}",
            f"{statistics.median(metrics[engine]['told']['scheduler_tokens_per_s']):.0f}",
        ]
        for engine, label in engines.items()
        for tokens, run in metrics.get(engine, {}).items()
        if tokens.isdigit()
    ]


def ratios_of(metrics: dict[str, Any]) -> str:
    """The result's ratios by their keys."""
    return ", ".join(
        f"`{name}` {value:.2f}" for name, value in metrics.items() if isinstance(value, int | float)
    )


def selected(told: dict[str, Any]) -> str:
    """What a server selected, what had a frame, and its pools."""
    recorder = told["recorder"]
    pools = next(line for line in told["memory"] if "host pool" in line)
    return (
        f"selected {recorder['selected_share']:.1%} of the pages, {recorder['hit_rate']:.1%} of them with a frame "
        f"({pools.removeprefix('rheo: ')})"
    )


def serving(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on ``bench_serving`` with the same HBM for KV."""
    metrics = result["metrics"]
    return "\n\n".join(
        [
            "## Throughput that clients see",
            f"{metrics['model']}, SGLang's `bench_serving`: 24 documents of 28K tokens of real text, each asked about "
            "twice, 48 requests at once, 4 GiB of HBM for KV in every engine. Medians of a run's requests, but for "
            "the gap; the scheduler's rate is the median of what its log says while it decodes. Prompts travel as "
            "text, which takes a tokenizer's process 85 ms each: every engine has eight of them "
            "(`--tokenizer-worker-num`), and rheo's first tokens still wait for them most of all, since it admits "
            "every request as it comes. rheo runs with `residency_bonus` 0.5 and 8 threads for misses.",
            table(HEADER, rows_of(metrics, ENGINES)),
            f"{ratios_of(metrics)}. rheo {selected(metrics['rheo']['told'])}. How far such answers are from dense "
            "attention's: [quality.md](quality.md#the-default).",
            provenance(result),
        ]
    )


def serving_variants(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on ``bench_serving`` of rheo alone, with KV of the model's dtype and of 8 bits."""
    metrics = result["metrics"]
    told = [
        f"{label}: {selected(metrics[engine]['told'])}"
        for engine, label in VARIANTS.items()
        if engine in metrics
    ]
    return "\n\n".join(
        [
            "## KV in 8 bits in the same pools",
            f"{metrics['model']}, the same requests as above, with `residency_bonus` 0.5, `cpu_threads` 8 and four "
            "processes of the tokenizer. fa3 was not reached in this run, and the machine is another one than above: "
            "compare the rows with each other. Frames and host pool have the same bytes in both; the host pool then "
            "holds twice the tokens in 8 bits, so summaries and page table take twice the HBM, of which the second row "
            "has that much more. Rows are of speed alone: this very model is useless in 8 bits "
            "([quality.md](quality.md#kv-in-8-bits)).",
            table(HEADER, rows_of(metrics, VARIANTS)),
            f"{ratios_of(metrics)}. {'; '.join(told)}.",
            provenance(result),
        ]
    )
