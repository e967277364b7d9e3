#!/usr/bin/env python3
"""What the first decode steps after a prefix match miss, with and without pre-warming.

    PYTHONPATH=scripts python -m studies.prewarm --folder traces --sessions chat-16 questions-16 interleaved-16 agent-16

Takes the traces that `studies.trace_workloads` left in the folder and replays them with policy ``importance``, without
pre-warming and with several weights of it, beside LRU and Belady's MIN. Writes
``docs/benchmarks/results/prewarm_cpu.json``: of the requests whose prompt began with cached pages, the share of
selected pages that have a frame in the first decode step, in steps 2 to 4 and 5 to 16, in the first 16 together, and
after them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from common.measurement import write_result
from rheo_sglang.config import PREWARM
from rheo_sglang.decode.reference_engine import RUNNERS_UP
from rheo_sglang.replay.belady import Belady
from rheo_sglang.replay.compact import Replayable, compact
from rheo_sglang.replay.intervals import interval
from rheo_sglang.replay.sweep import BELADY, Case, frames_of, run
from rheo_sglang.replay.world import StepCounts, World
from rheo_sglang.traces import Trace
from rheo_sglang.traces.events import Noted, Prompts, Step

CAPACITIES = (1.25, 2.0)
WEIGHTS = (0.3, 0.5, 1.0)
"""Of a prompt in importance, replayed beside the default's with the least capacity, as runners-up are."""
SPANS = {"1": (0, 1), "2-4": (1, 4), "5-16": (4, 16), "1-16": (0, 16), "later": (16, None)}
"""Decode steps after a prompt, the first one 0."""
KEPT_STEPS = 17
SAMPLES = 1000
Counts = npt.NDArray[np.int64]


def matched(replayable: Replayable) -> dict[str, int]:
    """Requests whose prompt began with cached pages, and how many."""
    cached: set[int] = set()
    found: dict[str, int] = {}
    for event in replayable.events:
        if isinstance(event, Noted):
            if event.kind != "fold":
                cached = cached - set(event.pages.tolist()) if event.kind == "free" else set()
            continue
        lists = [
            set(pages[: -(-int(tokens) // replayable.page_size)].tolist())
            for pages, tokens in zip(event.pages, event.tokens, strict=True)
        ]
        if isinstance(event, Prompts):
            for request, pages in zip(event.requests, lists, strict=True):
                found.setdefault(request, len(pages & cached))
        cached |= set[int]().union(*lists)
    return {request: pages for request, pages in found.items() if pages}


def by_step(counted: Iterable[StepCounts], requests: Sequence[str], rows: int) -> tuple[Counts, Counts, int]:
    """Hits and selected pages of each request, step since its prompt and row, and pages loaded ahead."""
    place = {request: index for index, request in enumerate(requests)}
    hits, selected = (np.zeros((len(place), KEPT_STEPS, rows), dtype=np.int64) for _ in range(2))
    steps: Counter[str] = Counter()
    ahead = 0
    for counts in counted:
        ahead += counts.ahead
        for index, request in enumerate(counts.requests):
            if request in place:
                at = place[request], min(steps[request], KEPT_STEPS - 1)
                hits[at] += counts.hits[index]
                selected[at] += counts.selected[index]
                steps[request] += 1
    return hits, selected, ahead


def figures(hits: Counts, selected: Counts) -> dict[str, Any]:
    """Hit rates of each span of steps, with 95 % intervals over requests and rows."""
    requests, _, rows = hits.shape
    draw = np.random.default_rng(0)
    by_request = draw.multinomial(requests, np.full(requests, 1 / requests), SAMPLES)
    by_row = draw.multinomial(rows, np.full(rows, 1 / rows), SAMPLES)
    found: dict[str, Any] = {}
    for name, (start, stop) in SPANS.items():
        parts = hits[:, start:stop].sum(1), selected[:, start:stop].sum(1)
        weighted = [((by_request @ part) * by_row).sum(1) for part in parts]
        found[name] = {
            "hit_rate": round(float(parts[0].sum() / parts[1].sum()), 4),
            "interval": interval(weighted[0] / np.maximum(weighted[1], 1)),
        }
    missed = (selected[:, :16] - hits[:, :16]).sum((0, 1, 2)) / requests
    found["missed_first_16"] = round(float(missed / rows), 2)
    found["missed_first"] = round(float((selected[:, 0] - hits[:, 0]).sum() / requests / rows), 2)
    return found


def cases() -> list[Case]:
    """What is replayed."""
    found = []
    for capacity in CAPACITIES:
        found += [Case(name, capacity, 0, None, 0.0) for name in ("lru", BELADY)]
        found += [Case("importance", capacity, 0, None, weight) for weight in (0.0, PREWARM)]
    found += [Case("importance", CAPACITIES[0], 0, None, weight) for weight in WEIGHTS]
    found += [Case("importance", CAPACITIES[0], RUNNERS_UP, None, weight) for weight in (0.0, PREWARM)]
    return found


def describe(folder: Path) -> dict[str, Any]:
    """One session, on one core."""
    torch.set_num_threads(1)
    trace = Trace(folder)
    replayable = compact(trace)
    rows = trace.layers * trace.kv_heads
    cached = matched(replayable)
    belady = Belady(replayable, 0)
    entries = []
    for case in tqdm(cases(), desc=trace.folder.name, leave=False, disable=None):
        frames = frames_of(trace, replayable, case)
        if case.policy == BELADY:
            counted: Iterable[StepCounts] = belady.run(frames)
        else:
            alpha = trace.manifest["config"]["importance_alpha"]
            world = World(replayable, case.policy, frames, case.runners_up, alpha, case.prewarm or 0.0)
            counted = run(world, replayable)
        hits, selected, ahead = by_step(counted, list(cached), rows)
        entries.append(
            {
                "policy": case.policy,
                "prewarm": case.prewarm,
                "runners_up": case.runners_up,
                "capacity": case.capacity,
                "frames": frames,
                **figures(hits, selected),
                "loaded_ahead": ahead,
            }
        )
    session = json.loads((trace.folder.parent / f"{trace.folder.name}.json").read_text())
    steps = sum(isinstance(event, Step) for event in replayable.events)
    return {
        "model": trace.manifest["model"],
        "page_size": trace.page_size,
        "budget_ratio": trace.manifest["config"]["budget_ratio"],
        "prompt_tokens": session["prompt_tokens"],
        "cached_pages": cached,
        "selected": replayable.largest,
        "steps": steps,
        "rows": rows,
        "replays": entries,
    }


def main() -> None:
    """Replay sessions of a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the traces are")
    parser.add_argument("--sessions", nargs="+", required=True, help="names of traces")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        described = pool.map(describe, [options.folder / name for name in options.sessions])
        sessions = dict(zip(options.sessions, described, strict=True))
    write_result("prewarm_cpu", {"weight": PREWARM, "sessions": sessions})


if __name__ == "__main__":
    main()
