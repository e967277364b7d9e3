#!/usr/bin/env python3
"""Time to first token behind a prefix that is computed, read from storage, or found in DRAM.

    PYTHONPATH=scripts python -m benchmarks.storage

Serves SmolLM2 in float32 without a GPU, with SGLang's ``file`` backend in a new folder. A prefix of real text is asked
about four times, with another question each: when nobody knows it (``computed``), after a flush with its files removed
from the operating system's cache (``disk``), after another flush with its files in that cache (``storage``), and at
once again (``dram``). Prefixes are other ones in every round, and the median of the rounds counts, of the ratios too.
Writes ``docs/benchmarks/results/storage_cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.measurement import MODEL, text_prompts, write_result
from common.sglang_server import SGLangServer

LENGTHS = {"2k": 2048, "4k": 4096, "6k": 6144}
ROUNDS = 3
QUESTION_TOKENS = 32
WAYS = ("computed", "disk", "storage", "dram")
PAGE_SIZE = 32
FOLDER_VARIABLE = "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR"
WRITE_SECONDS = 120.0
ENDS = ("pages_written", "pages_already_stored", "pages_dropped", "pages_freed_first", "write_errors")
"""What may become of a page that was offered."""


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[SGLangServer]:
    """A server whose prefixes are kept in a folder."""
    arguments = [
        *("--attention-backend", "rheo", "--page-size", str(PAGE_SIZE)),
        *("--max-running-requests", "1", "--context-length", "8192", "--max-total-tokens", "32768"),
        *("--hicache-storage-backend", "file", "--hicache-storage-prefetch-policy", "wait_complete"),
    ]
    with tempfile.TemporaryDirectory() as logs:
        environment = {FOLDER_VARIABLE: str(folder)}
        with SGLangServer(model, arguments, Path(logs) / "server.log", environment=environment) as server:
            yield server


def storage(server: SGLangServer) -> dict[str, Any]:
    """The storage tier's counters."""
    return server.server_info()["internal_states"][0]["rheo"]["storage"]


def first_token(server: SGLangServer, prompt: list[int]) -> tuple[float, int]:
    """Seconds until the first token, and the prompt's tokens that were cached."""
    start = time.perf_counter()
    for event in server.stream(prompt, 1, timeout=1200, ignore_eos=True):
        return time.perf_counter() - start, event["meta_info"]["cached_tokens"]
    raise RuntimeError("the server answered nothing")


def wait_until_written(server: SGLangServer) -> None:
    """Wait until every page of the cached prefixes is in storage."""
    deadline = time.monotonic() + WRITE_SECONDS
    while (state := storage(server))["pages_offered"] > sum(state[name] for name in ENDS):
        if time.monotonic() > deadline:
            raise RuntimeError(f"pages were not written within {WRITE_SECONDS:.0f} s: {state}")
        time.sleep(0.2)


def forget_files(folder: Path) -> None:
    """Have the operating system read these files from the disk when they are asked for next."""
    os.sync()
    for path in folder.glob("*.bin"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def measure_round(
    server: SGLangServer, folder: Path, prefix: list[int], questions: list[list[int]]
) -> dict[str, float]:
    """Seconds to the first token behind one prefix, by the way it comes."""
    seconds: dict[str, float] = {}
    for way, question in zip(WAYS, questions, strict=True):
        if way != "dram":
            wait_until_written(server)
            server.flush_cache()
        if way == "disk":
            forget_files(folder)
        seconds[way], cached = first_token(server, prefix + question)
        expected = 0 if way == "computed" else len(prefix)
        if cached != expected:
            raise RuntimeError(f"{way}: {cached} tokens were cached, not {expected}")
    return seconds


def measure(model: Path, folder: Path) -> dict[str, Any]:
    """Medians of all lengths."""
    needed = [QUESTION_TOKENS] * len(WAYS)
    warm_up = PAGE_SIZE * 16
    lengths = [warm_up, *needed, *(length for length in LENGTHS.values() for _ in range(ROUNDS))]
    texts = text_prompts(model, lengths)
    questions = texts[1 : 1 + len(WAYS)]
    prefixes = iter(texts[1 + len(WAYS) :])
    metrics: dict[str, Any] = {}
    with serving(model, folder) as server:
        measure_round(server, folder, texts[0], questions)
        for name, length in LENGTHS.items():
            rounds = [
                measure_round(server, folder, next(prefixes), questions)
                for _ in tqdm(range(ROUNDS), desc=name, leave=False)
            ]
            metrics[name] = {
                "prefix_tokens": length,
                **{f"ttft_{way}_s": statistics.median(one[way] for one in rounds) for way in WAYS},
                "rounds": rounds,
            }
            for way in WAYS[1:]:
                ratio = statistics.median(one[way] / one["computed"] for one in rounds)
                metrics[f"ttft_ratio_{way}_{name}"] = ratio
        metrics["storage"] = storage(server)
    return metrics


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        metrics = measure(arguments.model, Path(folder))
    metrics |= {
        "model": arguments.model.name,
        "page_size": PAGE_SIZE,
        "question_tokens": QUESTION_TOKENS,
        "rounds": ROUNDS,
    }
    print(json.dumps(metrics, indent=1))
    print(write_result("storage_cpu", metrics))


if __name__ == "__main__":
    main()
