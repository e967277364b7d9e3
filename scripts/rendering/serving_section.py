"""Section of docs/results.md on the throughput that clients see."""

from __future__ import annotations

import statistics
from typing import Any

ENGINES = {
    "fa3": "fa3",
    "hicache": "fa3 with HiCache",
    "rheo": "rheo",
}


def serving(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on ``bench_serving`` with the same HBM for KV."""
    metrics = result["metrics"]
    rows = [
        [
            ENGINES[engine],
            int(tokens),
            f"{run['output_throughput']:.0f}",
            f"{run['request_throughput']:.2f}",
            f"{run['median_tpot_ms']:.2f}",
            f"{run['p99_itl_ms']:.1f}",
            f"{run['median_ttft_ms'] / 1e3:.1f}",
            f"{statistics.median(metrics[engine]['told']['scheduler_tokens_per_s']):.0f}",
        ]
        for engine in ENGINES
        for tokens, run in metrics.get(engine, {}).items()
        if tokens.isdigit()
    ]
    header = [
        "engine",
        "tokens an answer",
        "tokens/s",
        "requests/s",
        "TPOT ms",
        "P99 gap ms",
        "first token s",
        "scheduler's tokens/s",
    ]
    ratios = ", ".join(
        f"`{name}` {value:.2f}" for name, value in metrics.items() if isinstance(value, int | float)
    )
    recorder = metrics["rheo"]["told"]["recorder"]
    pools = next(line for line in metrics["rheo"]["told"]["memory"] if "host pool" in line)
    return "\n\n".join(
        [
            "## Throughput that clients see",
            f"{metrics['model']}, SGLang's `bench_serving`: 24 documents of 28K tokens of real text, each asked about "
            "twice, 48 requests at once, 4 GiB of HBM for KV in every engine. Medians of a run's requests, but for "
            "the gap; the scheduler's rate is the median of what its log says while it decodes. Prompts travel as "
            "text and reach the scheduler one by one, 85 ms apart in its log with nothing queued: the tokenizer's "
            "process is what rheo's first tokens wait for, since every request is admitted as it comes.",
            table(header, rows),
            f"{ratios}. rheo selected {recorder['selected_share']:.1%} of the pages, {recorder['hit_rate']:.1%} of "
            f"them with a frame ({pools.removeprefix('rheo: ')}). How far such answers are from dense attention's: "
            "[quality.md](quality.md#the-default).",
            provenance(result),
        ]
    )
