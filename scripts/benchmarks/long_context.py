#!/usr/bin/env python3
"""Memory of a 512K-token prefill, and decode after 1M tokens, at the Qwen2.5-7B-1M shape with random weights.

    PYTHONPATH=scripts python -m benchmarks.long_context --out FILE [--parts prefill decode] [--prefill]

``prefill``: HBM that a prompt of ``--tokens`` takes with 4 GiB of frames, against the bound promised at start.
``decode``: time per output token after ``--decode-tokens``; their KV is seeded by chunks that attend to themselves
alone (`local_prefill`) unless ``--prefill`` asks for dense attention, and decode is the real one in either case.
Random weights have no locality, so page scores are ``fitted``: of a process whose locality is SmolLM2's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chunk_times import BEGINS, ChunkTimes
from benchmarks.device_memory import GIB, DeviceMemory
from benchmarks.kv_memory import memory_figures, pool_sizes
from benchmarks.local_prefill import ENVIRONMENT as LOCAL
from benchmarks.local_prefill import install as install_local_prefill
from benchmarks.tpot import COUNTED, NEW_TOKENS, hit_rate
from common.engine_benchmark import (
    CHUNK_TOKENS,
    ResultFile,
    answer,
    engine_arguments,
    flush,
    keep,
    open_result,
    random_prompt,
    result_parser,
    run_kept,
)
from common.measurement import RESULTS
from common.qwen25_1m_shape import CONFIG as MODEL
from common.qwen25_1m_shape import KV, make_shape
from locality.plugin import ENVIRONMENT as SCORES
from locality.plugin import install as install_locality

FRAMES_GIB = 4
BUDGET_RATIO = 0.06
"""Frames of `FRAMES_GIB` hold 7.5 % of the KV of 1M tokens: 1.25 times what is selected."""
CONFIG = {"frame_pool_gib": FRAMES_GIB, "budget_ratio": BUDGET_RATIO}
ROOM = 1024
WARM_UP_TOKENS = CHUNK_TOKENS - 192
LEAST_TOKENS, MOST_TOKENS = 2 * CHUNK_TOKENS, int(str(MODEL["max_position_embeddings"])) - ROOM
PARTS = ("prefill", "decode")


def token_label(tokens: int) -> str:
    """``512k``, ``1m``, or the number itself where it is not a round one."""
    for unit, suffix in ((1000000, "m"), (1024, "k")):
        if tokens % unit == 0:
            return f"{tokens // unit}{suffix}"
    return str(tokens)


def prompt_tokens(text: str) -> int:
    """A prompt's length, from the command line."""
    if not text.isdecimal() or not LEAST_TOKENS <= int(text) <= MOST_TOKENS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not supported; allowed: {LEAST_TOKENS} to {MOST_TOKENS} tokens"
        )
    return int(text)


def server_pools(engine: Any, context: int) -> dict[str, float]:
    """`pool_sizes` of a running engine."""
    state = engine.get_server_info()["internal_states"][0]["rheo"]
    return pool_sizes(KV, state["counters"], context, state["config"]["summary"])


def long_prompt(engine: Any, ids: list[int], rid: str, memory: DeviceMemory) -> dict[str, Any]:
    """Prefill a prompt that no cache has; its time, and the device memory it takes."""
    before = memory.take_peak()
    answer(engine, random_prompt("warm-up", WARM_UP_TOKENS), "warm-up", NEW_TOKENS)
    one_chunk = memory.take_peak()
    flush(engine)
    print(f"{BEGINS}: {len(ids)} tokens, {one_chunk / GIB:.2f} GiB of device memory in use", flush=True)
    found = answer(engine, ids, rid, 1)
    peak = memory.take_peak()
    print(
        f"long prompt ends: {found.ttft_s:.1f} s, {peak / GIB:.2f} GiB of device memory at most", flush=True
    )
    pools = server_pools(engine, len(ids) + ROOM)
    return {
        "prompt_tokens": len(ids),
        "cached_tokens": found.cached_tokens,
        "prefill_s": found.ttft_s,
        "tokens_per_s": len(ids) / found.ttft_s,
        **pools,
        **memory_figures(pools, before, one_chunk, peak),
        "host_memory_in_use_gib": psutil.virtual_memory().used / GIB,
    }


def decode_figures(engine: Any, ids: list[int], label: str) -> dict[str, Any]:
    """Time per output token after a prompt that is in the cache."""
    found = answer(engine, ids, label, NEW_TOKENS)
    figures = {
        "tpot_ms": found.tpot_ms(COUNTED),
        "tpot_mean_ms": sum(found.gaps_ms(COUNTED)) / COUNTED,
        "ttft_s": found.ttft_s,
        "cached_tokens": found.cached_tokens,
        "hit_rate": hit_rate(engine, label),
    }
    print(label, figures, flush=True)
    return figures


def serve(part: str, tokens: int, dense: bool, folder: Path) -> None:
    """Start an engine, run one part, and stop it; what was found so far is kept after every step."""
    import sglang

    kept, local = folder / "found.json", folder / "local"
    idle = psutil.virtual_memory().used
    start = time.monotonic()
    model = make_shape(Path(tempfile.mkdtemp()) / "qwen2.5-7b-1m-shape")
    engine = sglang.Engine(
        **engine_arguments(model, tokens + ROOM),
        attention_backend="rheo",
        page_size=KV.page_size,
        max_total_tokens=tokens + 4 * ROOM,
    )
    try:
        print(f"started in {time.monotonic() - start:.0f} s", flush=True)
        found: dict[str, Any] = {
            "start_s": time.monotonic() - start,
            "attention_of_prefill": "dense" if dense else "every chunk to itself alone: the KV is seeded",
            "host_memory_before_start_gib": idle / GIB,
        }
        ids = random_prompt("long", tokens)
        if not dense:
            local.touch()
        with DeviceMemory() as memory:
            found |= long_prompt(engine, ids, "long", memory)
        local.unlink(missing_ok=True)
        keep(found, kept)
        print(f"{part} {json.dumps(found)}", flush=True)
        if part == "decode":
            decode_figures(engine, ids, "settle")
            found["fitted"] = decode_figures(engine, ids, "fitted")
            keep(found, kept)
            print("decode ends", flush=True)
    finally:
        engine.shutdown()


def run_part(part: str, tokens: int, dense: bool, result: ResultFile) -> int:
    """Run one part in a process of its own, and add what it finds to the result."""
    chunk_times = ChunkTimes(tokens)
    label = f"{part}_{token_label(tokens)}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install_local_prefill(folder)
        install_locality(folder)
        scores = {
            "result": str(RESULTS / "locality_smollm2.json"),
            "page_size": KV.page_size,
        }
        paths = [str(folder), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "RHEO_CONFIG": json.dumps(CONFIG),
            LOCAL: str(folder / "local"),
            SCORES: json.dumps(scores),
        }

        def found(so_far: dict[str, Any]) -> None:
            chunks = [{"tokens": count, "s": round(seconds, 3)} for count, seconds in chunk_times.chunks]
            result.metrics[label] = {**so_far, "chunks": chunks}
            result.write(goals(result.metrics))

        command = [
            sys.executable,
            "-m",
            "benchmarks.long_context",
            "--part",
            part,
            "--tokens",
            str(tokens),
            "--folder",
            name,
        ]
        return run_kept(
            command + ["--prefill"] * dense, environment, folder / "found.json", found, chunk_times
        )


def goals(metrics: dict[str, Any]) -> dict[str, Any]:
    """The keys that the goals are read from."""
    keys: dict[str, Any] = {}
    for label, part in metrics.items():
        name, _, tokens = label.rpartition("_")
        if name == "prefill" and isinstance(part, dict):
            keys[f"peak_kv_hbm_gib_{tokens}"] = part["peak_kv_hbm_gib"]
            keys[f"promised_kv_hbm_gib_{tokens}"] = part["promised_kv_hbm_gib"]
        if name == "decode" and isinstance(part, dict):
            keys[f"kv_hbm_gib_{tokens}"] = part["peak_kv_hbm_gib"]
            keys[f"attention_of_prefill_{tokens}"] = part["attention_of_prefill"]
            if "fitted" in part:
                keys[f"tpot_ms_{tokens}"] = part["fitted"]["tpot_ms"]
                keys["max_context_served"] = max(keys.get("max_context_served", 0), part["prompt_tokens"])
    return keys


def main() -> int:
    """Run the parts and write the result."""
    parser = result_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tokens", type=prompt_tokens, default=512 * 1024, help="prompt of the part prefill")
    parser.add_argument(
        "--decode-tokens", type=prompt_tokens, default=1000000, help="prompt of the part decode"
    )
    parser.add_argument(
        "--prefill", action="store_true", help="prefill the prompt of the part decode densely"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        serve(arguments.part, arguments.tokens, arguments.prefill, arguments.folder)
        return 0
    result = open_result(parser, arguments, "prefill_gpu")
    result.metrics |= {
        "weights": "random, bfloat16",
        "long_context_shape": "Qwen2.5-7B-1M",
        "long_context_config": CONFIG,
    }
    failed = 0
    for part in arguments.parts:
        print(f"== {part}", flush=True)
        dense = part == "prefill" or arguments.prefill
        status = run_part(
            part, arguments.tokens if part == "prefill" else arguments.decode_tokens, dense, result
        )
        if status != 0:
            failed += 1
            print(f"{part}: Error: ended with status {status}", flush=True)
    print(json.dumps(goals(result.metrics), indent=1), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
