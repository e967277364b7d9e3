#!/usr/bin/env python3
"""A server under random load for a while: nothing fails that was not asked to, and nothing is left over.

    PYTHONPATH=scripts python -m benchmarks.soak --minutes 30                       SmolLM2 without a GPU
    PYTHONPATH=scripts python -m benchmarks.soak --minutes 20 --model FOLDER        on a GPU

Requests come at random times: prompts of real text of random lengths, many of them sharing beginnings, with settings of
their own, settings that are refused (HTTP 400 is what they ask for), streams that are read, left by the client or
aborted through ``/abort_request``, and now and then ``/flush_cache`` and ``/server_info`` in the middle. A fixed probe
is answered alone before and after. In the end the cache is flushed and everything must be free again. Memory is the
scheduler's resident set after a tenth of the time and at the end.

``errors`` are answers that nobody asked for, ``inconsistent`` counters that contradict each other while the load runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import torch
from tqdm import tqdm

from common.measurement import (
    MODEL,
    RESULTS,
    gpu_in_words,
    keep_result,
    machine_in_words,
    result_document,
    text_prompts,
)
from common.sglang_server import SGLangServer

GPU = torch.cuda.is_available()
BAD_REQUEST = 400
POLL_SECONDS = 10.0
IDLE_SECONDS = 300.0
FREE = (
    "frames_used",
    "pages_resident",
    "pages_unsaved",
    "pages_summarised",
    "pages_important",
    "pages_allocated",
)
"""Counters that are 0 where nothing runs and nothing is cached."""
REFUSED: tuple[Any, ...] = (
    {"budget_ratio": 7},
    {"budget_ratio": "half"},
    {"budget_min_pages": -1},
    {"no_such_setting": 1},
    "everything",
)
ASKED: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"budget_ratio": 0.05, "budget_min_pages": 4},
    {"budget_max_pages": 6, "budget_min_pages": 2},
)


@dataclass(frozen=True)
class Size:
    """A load, and the server it is for."""

    documents: tuple[int, ...]
    most_tail: int
    most_new: int
    at_once: int
    pause_seconds: float
    config: dict[str, Any]
    arguments: tuple[str, ...]


SIZES = {
    "cpu": Size(
        (1500, 900, 500, 200),
        120,
        48,
        6,
        1.0,
        {
            "budget_ratio": 0.2,
            "budget_min_pages": 8,
            "dense_threshold": 256,
            "frame_pool_tokens": 1024,
            "request_budget_ratio": 0.5,
            "admission": "working_set",
        },
        (
            "--context-length",
            "2048",
            "--max-running-requests",
            "8",
            "--max-total-tokens",
            "6144",
            "--page-size",
            "16",
        ),
    ),
    "gpu": Size(
        (28000, 15000, 6000, 900),
        2000,
        400,
        48,
        0.05,
        {"frame_pool_gib": 2, "host_pool_gib": 16, "request_budget_ratio": 0.2, "admission": "working_set"},
        ("--context-length", "32768", "--max-running-requests", "64"),
    ),
}


@dataclass
class Seen:
    """What has happened so far."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    inconsistent: list[str] = field(default_factory=list)


class Load:
    """Clients of one server.

    Parameters
    ----------
    server
        The server, which runs.
    size
        What to ask of it.
    documents
        Token ids of the texts that prompts begin with.
    seed
        Of everything random.
    """

    def __init__(self, server: SGLangServer, size: Size, documents: list[list[int]], seed: int) -> None:
        self.server, self.size, self.documents = server, size, documents
        self.random = random.Random(seed)
        self.seen = Seen()
        self.number = 0

    async def run(self, seconds: float) -> None:
        """Keep a few clients busy for a while, then wait for all of them."""
        end = time.monotonic() + seconds
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.server.base_url, connector=connector) as session:
            clients = [self._client(session, end) for _ in range(self.size.at_once)]
            with tqdm(total=round(seconds), unit="s", desc="soak", disable=None) as progress:
                await asyncio.gather(self._watch(session, end, progress), *clients)

    async def _client(self, session: aiohttp.ClientSession, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(self.random.expovariate(1 / self.size.pause_seconds))
            kind = self.random.choices(("read", "leave", "abort", "refused", "flush"), (60, 12, 12, 12, 4))[0]
            self.seen.counts[kind] += 1
            try:
                await (self._flush(session) if kind == "flush" else self._ask(session, kind))
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                self.seen.errors.append(f"{kind}: {type(error).__name__}: {error}")

    async def _flush(self, session: aiohttp.ClientSession) -> None:
        """SGLang refuses to flush while requests run, with HTTP 400."""
        async with session.post("/flush_cache") as answer:
            if answer.status not in (200, BAD_REQUEST):
                self.seen.errors.append(f"flush: HTTP {answer.status}: {(await answer.text())[:200]}")

    async def _ask(self, session: aiohttp.ClientSession, kind: str) -> None:
        self.number += 1
        rid, draw = f"soak-{self.number}", self.random
        document = draw.choice(self.documents)
        cut = draw.choice((len(document), len(document) // 2, draw.randint(1, len(document))))
        tail = draw.choice(self.documents)[: draw.randint(1, self.size.most_tail)]
        new = draw.randint(1, self.size.most_new)
        settings = draw.choice(REFUSED if kind == "refused" else ASKED)
        sampling: dict[str, Any] = {
            "temperature": draw.choice((0.0, 0.8)),
            "max_new_tokens": new,
            "ignore_eos": True,
        }
        if settings:
            sampling["custom_params"] = {"rheo": settings}
        body = {"rid": rid, "input_ids": document[:cut] + tail, "sampling_params": sampling, "stream": True}
        stop_after = draw.randint(0, new)
        async with session.post("/generate", json=body, timeout=aiohttp.ClientTimeout(None)) as answer:
            if kind == "refused":
                if answer.status != BAD_REQUEST:
                    self.seen.errors.append(f"refused: HTTP {answer.status} for {settings}")
                return
            if answer.status != 200:
                self.seen.errors.append(f"{kind}: HTTP {answer.status}: {(await answer.text())[:200]}")
                return
            events = 0
            async for event in self._events(answer):
                events += 1
                if "error" in event:
                    self.seen.errors.append(f"{kind}: {event['error']}")
                    return
                self._check(kind, event, new)
                if events > stop_after and kind == "leave":
                    return
                if events == stop_after + 1 and kind == "abort":
                    await (await session.post("/abort_request", json={"rid": rid})).read()

    def _check(self, kind: str, event: dict[str, Any], new: int) -> None:
        reason = event["meta_info"]["finish_reason"]
        if reason is None:
            return
        self.seen.counts[f"ended: {reason['type']}"] += 1
        if kind == "read" and (reason["type"] != "length" or event["meta_info"]["completion_tokens"] != new):
            self.seen.errors.append(
                f"read: ended by {reason} after {event['meta_info']['completion_tokens']} of {new}"
            )

    @staticmethod
    async def _events(answer: aiohttp.ClientResponse) -> Any:
        async for line in answer.content:
            text = line.strip().removeprefix(b"data:").strip()
            if text and text != b"[DONE]":
                yield json.loads(text)

    async def _watch(self, session: aiohttp.ClientSession, end: float, progress: Any) -> None:
        """Ask for the server's state now and then; what it says must agree with itself."""
        begin = time.monotonic()
        while time.monotonic() < end:
            await asyncio.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0.0)))
            try:
                async with session.get("/server_info") as answer:
                    state = (await answer.json())["internal_states"][0]["rheo"]
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                self.seen.errors.append(f"server_info: {type(error).__name__}: {error}")
                continue
            self.seen.counts["server_info"] += 1
            self.seen.inconsistent += contradictions(state)
            progress.update(round(time.monotonic() - begin) - progress.n)
            progress.set_postfix(requests=self.number, errors=len(self.seen.errors), refresh=False)


def contradictions(state: dict[str, Any]) -> list[str]:
    """What a server's counters say that cannot be."""
    found, counters = [], state["counters"]
    for part, whole in (("frames_used", "frames_total"), ("pages_allocated", "pages_total")):
        if not 0 <= counters[part] <= counters[whole]:
            found.append(f"{part} {counters[part]} of {counters[whole]}")
    if counters["pages_resident"] > counters["pages_allocated"]:
        found.append(f"{counters['pages_resident']} pages resident, {counters['pages_allocated']} allocated")
    recorder = state["recorder"] or {"requests": []}
    found += [
        f"request {entry['rid']}: hit rate {entry['hit_rate']}"
        for entry in recorder["requests"]
        if entry["hit_rate"] is not None and not 0 <= entry["hit_rate"] <= 1
    ]
    return found


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


def soak(
    server: SGLangServer, size: Size, documents: list[list[int]], minutes: float, seed: int
) -> dict[str, Any]:
    """Figures of one run."""

    def probe() -> list[int]:
        answer: dict[str, Any] = server.generate(documents[-1], 32, timeout=3600.0, ignore_eos=True)
        return list(answer["output_ids"])

    before = probe()
    load = Load(server, size, documents, seed)
    asyncio.run(load.run(6.0 * minutes))
    early = scheduler_mib(server)
    asyncio.run(load.run(54.0 * minutes))
    late = scheduler_mib(server)
    left = left_over(server)
    after = probe()
    seen = load.seen
    return {
        "minutes": minutes,
        "requests": load.number,
        "errors": len(seen.errors),
        "inconsistent": len(seen.inconsistent),
        "leaked_pages": max((left.get(name, 0) for name in FREE if name.startswith("pages")), default=0),
        "leaked_frames": left.get("frames_used", 0),
        "probe_changed": int(before != after),
        "memory_mib_after_a_tenth": round(early),
        "memory_mib_at_the_end": round(late),
        "counts": dict(sorted(seen.counts.items())),
        "first_errors": seen.errors[:20],
        "first_inconsistent": seen.inconsistent[:20],
        "server": {"config": size.config, "arguments": list(size.arguments)},
    }


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
    config = {**size.config, **json.loads(options.set)}
    arguments = ["--attention-backend", "rheo", *size.arguments, "--rheo-config", json.dumps(config)]
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "server.log"
        with SGLangServer(options.model, arguments, log, gpu=GPU) as server:
            found = soak(server, size, documents, options.minutes, options.seed)
    machine = gpu_in_words() if GPU else machine_in_words()
    keep_result(options.out, result_document(f"soak_{name}", {**found, "model": options.model.name}, machine))
    print(json.dumps(found, indent=1))
    return int(
        any(
            found[key] for key in ("errors", "inconsistent", "leaked_pages", "leaked_frames", "probe_changed")
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
