#!/usr/bin/env python3
"""Time to first token of rheo, of SGLang's fa3 and of HiCache, at the Qwen3-8B shape with random weights.

    PYTHONPATH=scripts python -m benchmarks.ttft --out FILE [--engines fa3 rheo ...] [--cases cold prefix]

Every engine runs in a process of its own. ``cold``: prompts that share nothing. ``prefix``: 8K new tokens after a
prefix of 120K tokens, which rheo and HiCache have in DRAM alone, because another prompt took the device memory since,
and which fa3 computes again (``recomputed``) or finds in HBM (``resident``). A figure is the median of three prompts
after one to warm up. HiCache runs with its kernels (SGLang's default) and with copy engines (``hicache-direct``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tpot import CONTEXTS, MARGIN, PAGE_SIZE, SELECTED
from common.engine_benchmark import (
    Answer,
    answer,
    engine_arguments,
    flush,
    keep,
    open_result,
    random_prompt,
    result_parser,
    run_kept,
)
from common.qwen3_shape import make_shape

LENGTHS = {"8k": 8192, "32k": CONTEXTS["32k"], "128k": CONTEXTS["128k"]}
LONGEST = LENGTHS["128k"]
PREFIX_TOKENS = LONGEST - LENGTHS["8k"]
REPEATS = 3
NEW_TOKENS = 8
ROOM = 4096
DEVICE_TOKENS = LONGEST + ROOM
"""HiCache's KV in HBM: one of the longest prompts, and not two."""
DRAM_RATIO = 3
SETTLE_SECONDS = 1.0
"""What engines write in the background after an answer is done before the next prompt is sent."""


@dataclass(frozen=True)
class EngineCase:
    """One engine: what it adds to SGLang's arguments, its rheo settings if it is rheo, and where it has the prefix."""

    arguments: dict[str, Any]
    prefixes: tuple[str, ...]
    config: dict[str, Any] | None = None


def hicache(**arguments: Any) -> EngineCase:
    """SGLang's fa3 over a hierarchical cache whose DRAM holds as many tokens as rheo's."""
    return EngineCase(
        {
            "attention_backend": "fa3",
            "page_size": 64,
            "max_total_tokens": DEVICE_TOKENS,
            "enable_hierarchical_cache": True,
            "hicache_ratio": float(DRAM_RATIO),
            "hicache_write_policy": "write_through",
            **arguments,
        },
        ("dram",),
    )


ENGINES = {
    "fa3": EngineCase({"attention_backend": "fa3", "page_size": 1}, ("recomputed", "resident")),
    "rheo": EngineCase(
        {
            "attention_backend": "rheo",
            "page_size": PAGE_SIZE,
            "max_total_tokens": DRAM_RATIO * DEVICE_TOKENS,
        },
        ("dram",),
        {"budget_ratio": SELECTED[""], "frame_pool_tokens": LONGEST // 10},
    ),
    "hicache": hicache(hicache_io_backend="kernel", hicache_mem_layout="page_first"),
    "hicache-direct": hicache(hicache_io_backend="direct", hicache_mem_layout="page_first_direct"),
}
HICACHES = ("hicache", "hicache-direct")
CASES = ("cold", "prefix")


def summary(answers: list[Answer], tokens: int) -> dict[str, Any]:
    """Figures of equal prompts of ``tokens`` tokens, of which the first warmed the engine up."""
    timed = answers[1:]
    ttft = statistics.median(a.ttft_s for a in timed)
    return {
        "prompt_tokens": tokens,
        "ttft_s": ttft,
        "tokens_per_s": tokens / ttft,
        "ttft_each_s": [a.ttft_s for a in timed],
        "ttft_warm_up_s": answers[0].ttft_s,
        "cached_tokens": [a.cached_tokens for a in timed],
        "cached_tokens_details": timed[-1].meta.get("cached_tokens_details"),
    }


def cold(engine: Any, length: str) -> dict[str, Any]:
    """Prompts that share nothing, one after another."""
    tokens = LENGTHS[length] - MARGIN
    answers = []
    for row in range(1 + REPEATS):
        time.sleep(SETTLE_SECONDS)
        answers.append(
            answer(engine, random_prompt(f"{length} {row}", tokens), f"cold-{length}-{row}", NEW_TOKENS)
        )
    return summary(answers, tokens)


def behind_prefix(engine: Any, where: str) -> dict[str, Any]:
    """New tokens after a prefix that was ``recomputed``, ``resident`` in HBM, or in ``dram`` alone."""
    prefix = random_prompt("prefix", PREFIX_TOKENS)
    whole = LONGEST - MARGIN
    flush(engine)
    answer(engine, prefix, f"{where}-prefix", NEW_TOKENS)
    answers = []
    for row in range(1 + REPEATS):
        if where == "recomputed":
            flush(engine)
        elif where == "dram":
            answer(engine, random_prompt(f"other {row}", whole), f"{where}-other-{row}", NEW_TOKENS)
        time.sleep(SETTLE_SECONDS)
        new = random_prompt(f"new {row}", whole - PREFIX_TOKENS)
        answers.append(answer(engine, prefix + new, f"{where}-{row}", NEW_TOKENS))
        print(f"{where} prefix, prompt {row}: {answers[-1].ttft_s:.3f} s", flush=True)
    return {**summary(answers, whole), "prefix_tokens": PREFIX_TOKENS}


def serve(name: str, cases: list[str], lengths: list[str], kept: Path) -> None:
    """Start an engine, time its prompts, and stop it; what was found so far is kept after every case."""
    import sglang

    case = ENGINES[name]
    start = time.monotonic()
    model = make_shape(Path(tempfile.mkdtemp()) / "qwen3-8b-shape")
    engine = sglang.Engine(**engine_arguments(model, LONGEST + 1024), **case.arguments)
    found: dict[str, Any] = {"start_s": time.monotonic() - start}
    print(f"started in {found['start_s']:.0f} s", flush=True)
    jobs: list[tuple[str, Callable[[Any, str], dict[str, Any]], str]] = []
    if "cold" in cases:
        jobs += [(f"cold_{length}", cold, length) for length in lengths]
    if "prefix" in cases:
        jobs += [(f"prefix_{where}", behind_prefix, where) for where in case.prefixes]
    try:
        for label, run, argument in jobs:
            found[label] = run(engine, argument)
            keep(found, kept)
            print(f"{name} {label} {json.dumps(found[label])}", flush=True)
    finally:
        engine.shutdown()


def ratios(metrics: dict[str, Any]) -> dict[str, float]:
    """The keys that the goals are read from: throughput, and time to first token with the prefix in DRAM, of rheo."""

    def figure(engine: str, label: str, field: str) -> float | None:
        value = metrics.get(engine, {}).get(label, {}).get(field)
        return None if value is None else float(value)

    keys: dict[str, float] = {}

    def ratio(key: str, above: float | None, below: float | None) -> None:
        if above is not None and below is not None:
            keys[key] = above / below

    for length in LENGTHS:
        dense = figure("fa3", f"cold_{length}", "tokens_per_s")
        for engine, suffix in (("rheo", ""), ("hicache", "_hicache"), ("hicache-direct", "_hicache_direct")):
            ratio(
                f"throughput_ratio{suffix}_{length}", figure(engine, f"cold_{length}", "tokens_per_s"), dense
            )
    ours = figure("rheo", "prefix_dram", "ttft_s")
    ratio("prefix_from_dram_vs_recompute_128k", ours, figure("fa3", "prefix_recomputed", "ttft_s"))
    ratio("prefix_from_dram_vs_hbm_128k", ours, figure("fa3", "prefix_resident", "ttft_s"))
    theirs = [ttft for engine in HICACHES if (ttft := figure(engine, "prefix_dram", "ttft_s")) is not None]
    ratio("prefix_from_dram_vs_hicache_128k", ours, min(theirs, default=None))
    return keys


def main() -> int:
    """Run the engines and write the result."""
    parser = result_parser(__doc__)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--kept", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        serve(arguments.engine, arguments.cases, arguments.lengths, arguments.kept)
        return 0
    result = open_result(parser, arguments, "prefill_gpu")
    metrics = result.metrics
    metrics |= {"weights": "random, bfloat16", "ttft_shape": "Qwen3-8B", "frame_pool_tokens": LONGEST // 10}
    failed = 0
    choice = ["--cases", *arguments.cases, "--lengths", *arguments.lengths]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.engines:
            print(f"== {name}", flush=True)
            kept = Path(folder) / f"{name}.json"
            earlier = metrics.get(name, {})

            def found(so_far: dict[str, Any], name: str = name, earlier: dict[str, Any] = earlier) -> None:
                metrics[name] = {**earlier, **so_far}
                result.write(ratios(metrics))

            command = [
                sys.executable,
                "-m",
                "benchmarks.ttft",
                "--engine",
                name,
                "--kept",
                str(kept),
                *choice,
            ]
            environment = {**os.environ, "RHEO_CONFIG": json.dumps(ENGINES[name].config or {})}
            status = run_kept(command, environment, kept, found)
            if status != 0:
                failed += 1
                print(f"{name}: Error: ended with status {status}", flush=True)
    print(json.dumps(ratios(metrics), indent=1), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
