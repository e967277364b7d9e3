#!/usr/bin/env python3
"""Time per output token of a server without a GPU: misses attended by the C++ kernel, and by the torch reference.

    PYTHONPATH=scripts python -m benchmarks.cpu_server

Serves SmolLM2 in bfloat16 with a budget of 20 % and frames for a quarter of that, so that most selected pages are
missed, twice: as it is, and with CPU attention limited to a variant that no machine has, for which the torch reference
stands in. Both servers run all the time and answer in turns, prompts of real text, one at a time, since a shared
machine is now faster, now slower; gaps between tokens while decoding. Writes
``docs/benchmarks/results/cpu_server.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.measurement import MODEL, text_prompts, write_result
from common.sglang_server import SGLangServer
from rheo_kernels.cpu import CPU_ISA

TOKENS, PROMPTS, ROUNDS, NEW_TOKENS, SKIPPED = 4000, 3, 3, 48, 8
PAGE_SIZE = 32
CONFIG = {
    "budget_ratio": 0.2,
    "budget_min_pages": 16,
    "dense_threshold": 0,
    "frame_pool_tokens": TOKENS // 20,
    "miss_mode": "split",
}
NO_VARIANT = "none"
VARIANTS = {"kernel": None, "torch": NO_VARIANT}


def gaps(server: SGLangServer, prompt: list[int]) -> list[float]:
    """Seconds between tokens of one answer, the first few left out."""
    times = []
    for _ in server.stream(prompt, NEW_TOKENS, timeout=1200, temperature=0.0, ignore_eos=True):
        times.append(time.perf_counter())
    return [b - a for a, b in zip(times[SKIPPED:], times[SKIPPED + 1 :], strict=False)]


@contextmanager
def serving(model: Path, isa: str | None) -> Iterator[SGLangServer]:
    """A server whose CPU attention is limited to a variant; idle, it leaves the cores to the other."""
    arguments = [
        *(
            "--attention-backend",
            "rheo",
            "--dtype",
            "bfloat16",
            "--page-size",
            str(PAGE_SIZE),
            "--sleep-on-idle",
        ),
        *("--max-running-requests", "1", "--context-length", "8192", "--max-total-tokens", "16384"),
        *("--rheo-config", json.dumps(CONFIG)),
    ]
    environment = {} if isa is None else {CPU_ISA: isa}
    with (
        tempfile.TemporaryDirectory() as folder,
        SGLangServer(model, arguments, Path(folder) / "server.log", environment=environment) as server,
    ):
        server.wait_ready()
        yield server


def measure(servers: dict[str, SGLangServer], prompts: list[list[int]]) -> dict[str, Any]:
    """Median gap between tokens (ms) and the hit rate of every server, and the ratio of the gaps of a turn."""
    found: dict[str, list[float]] = {name: [] for name in servers}
    for turn, prompt in enumerate(tqdm(prompts * ROUNDS, desc="turns", leave=False)):
        names = list(servers) if turn % 2 == 0 else list(servers)[::-1]
        for name in names:
            found[name].append(statistics.median(gaps(servers[name], prompt)))
    metrics: dict[str, Any] = {}
    for name, server in servers.items():
        report = server.server_info()["internal_states"][0]["rheo"]["recorder"]
        hit_rate = report["overall"]["hit_rate"]
        metrics[name] = {"tpot_ms": 1e3 * statistics.median(found[name]), "hit_rate": hit_rate}
    turns = zip(found["kernel"], found["torch"], strict=True)
    metrics["tpot_ratio_kernel_vs_torch"] = statistics.median(kernel / torch for kernel, torch in turns)
    return metrics


def main() -> None:
    """Measure both servers and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL)
    arguments = parser.parse_args()
    os.environ.pop(CPU_ISA, None)
    prompts = text_prompts(arguments.model, [TOKENS] * PROMPTS)
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(arguments.model, isa))
            for name, isa in tqdm(VARIANTS.items(), desc="servers", leave=False)
        }
        metrics = measure(servers, prompts)
    metrics |= {"prompt_tokens": TOKENS, "config": CONFIG, "page_size": PAGE_SIZE}
    print(json.dumps(metrics, indent=1))
    print(write_result("cpu_server", metrics))


if __name__ == "__main__":
    main()
