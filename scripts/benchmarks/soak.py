#!/usr/bin/env python3
"""A server under random load for a while: nothing fails that was not asked to, and nothing is left over.

    PYTHONPATH=scripts python -m benchmarks.soak --minutes 30                       SmolLM2 without a GPU
    PYTHONPATH=scripts python -m benchmarks.soak --minutes 20 --model FOLDER        on a GPU

Requests come at random times: prompts of real text of random lengths, many of them sharing beginnings, with settings of
their own, settings that are refused (HTTP 400 is what they ask for), streams that are read, left by the client or
aborted through ``/abort_request``, clients in processes that are killed, and now and then ``/flush_cache`` and
``/server_info`` in the middle. The server traces, writes an importance file and keeps prefixes in storage, until the
threads that do so are ended from outside, one after another: each end must be told in one line of its log, and
requests go on. A fixed probe is answered alone before and after. In the end the cache is flushed and everything must be
free again. Memory is that of the server's processes after a tenth of the time and at the end.

``errors`` are answers that nobody asked for, ``inconsistent`` counters that contradict each other while the load runs,
``threads_not_told`` ends of threads without their line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak_faults import ENVIRONMENT, install
from benchmarks.soak_load import SIZES, Load, Size
from common.measurement import (
    MODEL,
    RESULTS,
    SCRIPTS,
    gpu_in_words,
    keep_result,
    machine_in_words,
    result_document,
    text_prompts,
)
from common.sglang_server import SGLangServer

GPU = torch.cuda.is_available()
IDLE_SECONDS = 60.0 if GPU else 300.0
WRONG = (
    "errors",
    "inconsistent",
    "leaked_pages",
    "leaked_frames",
    "probe_changed",
    "threads_not_told",
)
"""Figures that are 0 in a run in which nothing was wrong."""
FREE = (
    "frames_used",
    "pages_resident",
    "pages_unsaved",
    "pages_summarised",
    "pages_important",
    "pages_allocated",
)
"""Counters that are 0 where nothing runs and nothing is cached."""
THREADS = {
    "rheo-trace": "steps, for the thread that writes",
    "rheo-importance": "is not written any more, for its thread ended",
    "rheo-storage-reader": "rheo: storage is off from now on, for the thread that reads ended",
}
"""Threads that are ended, in this order, and what a server says of it."""


def state_of(server: SGLangServer) -> dict[str, Any]:
    """The rheo state of a server's first scheduler."""
    return server.server_info()["internal_states"][0]["rheo"]


def left_over(server: SGLangServer) -> dict[str, int]:
    """Counters that are not 0 once nothing runs and the cache is empty; waits for what still ends."""
    deadline = time.monotonic() + IDLE_SECONDS
    while True:
        server.flush_cache(timeout=IDLE_SECONDS)
        counters = state_of(server)["counters"]
        left = {name: counters[name] for name in FREE if counters[name]}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1.0)


def scheduler_mib(server: SGLangServer) -> float:
    """Resident memory of the server's processes, MiB, shared pages with each of them."""
    assert server.process is not None
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == server.process.pid:
                total += int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return total / (1 << 20)


def features(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Settings and arguments by which every thread that may end has work, below a folder."""
    storage = {"file_storage_path": str(folder / "storage"), "max_size": "1Gi"}
    return (
        {
            "trace": str(folder / "trace"),
            "importance_file": str(folder / "importance"),
            "importance_interval": 2,
        },
        [
            *("--hicache-storage-backend", "file"),
            *("--hicache-storage-backend-extra-config", json.dumps(storage)),
        ],
    )


def not_told(log: str) -> list[str]:
    """Threads whose end a server's log has no line about, or more than one."""
    return [name for name, words in THREADS.items() if log.count(words) != 1]


def soak(
    server: SGLangServer, size: Size, documents: list[list[int]], faults: Path, minutes: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Figures of one run: those of the load, and then all, with what is left once it is over."""

    def probe() -> list[int]:
        answer: dict[str, Any] = server.generate(documents[-1], 32, timeout=3600.0, ignore_eos=True)
        return list(answer["output_ids"])

    before = probe()
    load = Load(server, size, documents, faults, seed)
    asyncio.run(load.run(6.0 * minutes))
    early = scheduler_mib(server)
    asyncio.run(load.run(54.0 * minutes, list(THREADS)))
    late = scheduler_mib(server)
    seen, silent = load.seen, not_told(server.log.read_text(errors="replace"))
    found: dict[str, Any] = {
        "minutes": minutes,
        "requests": load.number,
        "errors": len(seen.errors),
        "inconsistent": len(seen.inconsistent),
        "threads_ended": list(THREADS),
        "threads_not_told": len(silent),
        "memory_mib_after_a_tenth": round(early),
        "memory_mib_at_the_end": round(late),
        "counts": dict(sorted(seen.counts.items())),
        "first_errors": seen.errors[:20],
        "first_inconsistent": seen.inconsistent[:20],
        "server": {"config": size.config, "arguments": list(size.arguments)},
    }
    yield found
    left = left_over(server)
    found |= {
        "leaked_pages": max((left.get(name, 0) for name in FREE if name.startswith("pages")), default=0),
        "leaked_frames": left.get("frames_used", 0),
        "probe_changed": int(before != probe()),
    }
    yield found


def main() -> int:
    """Run and write the result; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    name = "gpu" if GPU else "cpu"
    parser.add_argument("--minutes", type=float, default=20.0 if GPU else 30.0)
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", default="{}", help="more settings, as JSON")
    parser.add_argument("--log", type=Path, help="file that keeps the server's log")
    parser.add_argument("--out", type=Path, default=RESULTS / f"soak_{name}.json")
    options = parser.parse_args()
    size = SIZES[name]
    documents = text_prompts(options.model, list(size.documents))
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        faults, plugin = folder / "faults", folder / "plugin"
        faults.mkdir()
        install(plugin)
        settings, beside = features(folder)
        config = json.dumps({**size.config, **settings, **json.loads(options.set)})
        arguments = ["--attention-backend", "rheo", *size.arguments, *beside, "--rheo-config", config]
        path = os.pathsep.join([str(plugin), str(SCRIPTS), os.environ.get("PYTHONPATH", "")])
        environment = {"PYTHONPATH": path, ENVIRONMENT: str(faults)}
        log = options.log or folder / "server.log"
        with SGLangServer(options.model, arguments, log, environment=environment, gpu=GPU) as server:
            machine = gpu_in_words() if GPU else machine_in_words()
            for found in soak(server, size, documents, faults, options.minutes, options.seed):
                metrics = {**found, "model": options.model.name}
                keep_result(options.out, result_document(f"soak_{name}", metrics, machine))
    print(json.dumps(found, indent=1))
    return int(any(found[key] for key in WRONG))


if __name__ == "__main__":
    raise SystemExit(main())
