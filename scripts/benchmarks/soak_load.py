"""soak_load: the clients of a soak, and what they find wrong."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from tqdm import tqdm

from benchmarks.soak_faults import DONE
from common.sglang_server import SGLangServer

BAD_REQUEST = 400
POLL_SECONDS = 10.0
KINDS = {"read": 56, "leave": 12, "abort": 12, "refused": 12, "flush": 4, "kill": 4}
"""What clients do, and how often of a hundred."""
BEGINNINGS = (0.0, 0.0, 0.0, 0.25, 0.4, 0.5)
"""Where in a document prompts begin: all of it outgrows the host pool, so that some beginnings are in storage alone."""
CLIENT = """
import sys, urllib.request
kind = {"Content-Type": "application/json"}
request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read(), kind)
for line in urllib.request.urlopen(request):
    pass
"""
"""A client in a process of its own, to be killed."""
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
    faults
        Folder in which the server's plugin looks for threads to end.
    seed
        Of everything random.
    """

    def __init__(
        self, server: SGLangServer, size: Size, documents: list[list[int]], faults: Path, seed: int
    ) -> None:
        self.server, self.size, self.documents, self.faults = server, size, documents, faults
        self.random = random.Random(seed)
        self.seen = Seen()
        self.number = 0

    async def run(self, seconds: float, threads: Sequence[str] = ()) -> None:
        """Keep a few clients busy for a while, in which threads of the server end; then wait for all clients."""
        end = time.monotonic() + seconds
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.server.base_url, connector=connector) as session:
            clients = [self._client(session, end) for _ in range(self.size.at_once)]
            with tqdm(total=round(seconds), unit="s", desc="soak", disable=None) as progress:
                await asyncio.gather(
                    self._watch(session, end, progress), self._end_threads(threads, seconds), *clients
                )

    async def _client(self, session: aiohttp.ClientSession, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(self.random.expovariate(1 / self.size.pause_seconds))
            kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
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

    async def _end_threads(self, names: Sequence[str], seconds: float) -> None:
        """Have one thread end after another, at equal distances; each has half of one to be ended in."""
        distance = seconds / (len(names) + 1)
        for name in names:
            await asyncio.sleep(distance)
            (self.faults / name).touch()
        await asyncio.sleep(distance / 2 if names else 0.0)
        self.seen.errors += [
            f"fault: {path.name} did not end" for path in self.faults.iterdir() if path.suffix != DONE
        ]

    async def _kill(self, body: dict[str, Any]) -> None:
        """Have another process ask, and kill it while it reads the answer, or before."""
        url = f"{self.server.base_url}/generate"
        pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        command = (sys.executable, "-I", "-c", CLIENT, url)
        client = await asyncio.create_subprocess_exec(*command, stdin=pipe, stderr=nowhere)
        assert client.stdin is not None
        client.stdin.write(json.dumps(body).encode())
        client.stdin.close()
        try:
            await asyncio.wait_for(client.wait(), self.random.uniform(0.1, 4.0))
        except TimeoutError:
            client.kill()
            await client.wait()
            self.seen.counts["killed"] += 1

    async def _ask(self, session: aiohttp.ClientSession, kind: str) -> None:
        self.number += 1
        rid, draw = f"soak-{self.number}", self.random
        document = draw.choice(self.documents)
        document = document[int(len(document) * draw.choice(BEGINNINGS)) :]
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
        if kind == "kill":
            await self._kill(body)
            return
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
    storage = state.get("storage")
    if storage and storage["pages_restored"] > storage["pages_read"]:
        found.append(f"{storage['pages_restored']} pages restored, {storage['pages_read']} read")
    recorder = state["recorder"] or {"requests": []}
    found += [
        f"request {entry['rid']}: hit rate {entry['hit_rate']}"
        for entry in recorder["requests"]
        if entry["hit_rate"] is not None and not 0 <= entry["hit_rate"] <= 1
    ]
    return found
