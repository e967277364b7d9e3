"""agent_clients: clients that hold agent sessions with a server, and what they see of every turn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
from tqdm import tqdm

from workloads.agent_sessions import AFTER_ANSWER, Encode, Turns, as_text

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Seen:
    """One turn as its client saw it: times in seconds, counts in tokens."""

    turn: int
    ttft: float
    tpot: float
    prompt: int
    cached: int
    answered: int


class AgentClients:
    """Sessions that take turns: each sends its next prompt when it has its answer and one of few places is free.

    Histories are token ids that only grow: the prompt before, the ids that the server answered with, and what is new.
    So a prefix that the server still has is found whatever the tokenizer makes of an answer.

    Parameters
    ----------
    base_url
        The server's.
    encode
        Of the model's tokenizer.
    answer_tokens
        Of each answer.
    at_once
        Most requests that run at a time. Those that wait are served in the order in which they came.
    """

    def __init__(self, base_url: str, encode: Encode, answer_tokens: int, at_once: int) -> None:
        self.base_url, self.encode = base_url, encode
        self.answer_tokens, self.at_once = answer_tokens, at_once
        self.seen: list[Seen] = []

    def run(self, sessions: Sequence[Turns], name: str) -> float:
        """Hold all sessions to their ends; returns how many seconds that took.

        Raises
        ------
        RuntimeError
            If the server refuses a turn or ends it early.
        """
        begin = time.perf_counter()
        with tqdm(total=sum(map(len, sessions)), unit="turn", desc=name, disable=None) as progress:
            asyncio.run(self._hold(sessions, progress))
        return time.perf_counter() - begin

    async def _hold(self, sessions: Sequence[Turns], progress: Any) -> None:
        places = asyncio.Semaphore(self.at_once)
        timeout, connector = aiohttp.ClientTimeout(None), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.base_url, timeout=timeout, connector=connector) as http:

            async def hold(turns: Turns) -> None:
                history: list[int] = []
                for number, messages in enumerate(turns, 1):
                    new = as_text(messages) if number == 1 else AFTER_ANSWER + as_text(messages)
                    history += self.encode(new).ids
                    async with places:
                        seen, answer = await self._ask(http, number, history)
                    history += answer
                    self.seen.append(seen)
                    progress.update()
                    progress.set_postfix(turn=number, ttft=f"{seen.ttft:.2f}s", refresh=False)

            async with asyncio.TaskGroup() as group:
                for turns in sessions:
                    group.create_task(hold(turns))

    async def _ask(self, http: aiohttp.ClientSession, turn: int, prompt: list[int]) -> tuple[Seen, list[int]]:
        sampling = {"temperature": 0.0, "max_new_tokens": self.answer_tokens, "ignore_eos": True}
        body = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
        begin, first, last, event = time.perf_counter(), 0.0, 0.0, {}
        async with http.post("/generate", json=body) as answer:
            if answer.status != 200:
                raise RuntimeError(f"turn {turn}: HTTP {answer.status}: {(await answer.text())[:200]}")
            async for line in answer.content:
                text = line.strip().removeprefix(b"data:").strip()
                if not text or text == b"[DONE]":
                    continue
                last = time.perf_counter()
                first = first or last
                event = json.loads(text)
        said = event.get("output_ids") or []
        if len(said) != self.answer_tokens:
            raise RuntimeError(f"turn {turn} ended after {len(said)} of {self.answer_tokens} tokens: {event}")
        meta = event["meta_info"]
        tpot = (last - first) / max(len(said) - 1, 1)
        return Seen(turn, first - begin, tpot, meta["prompt_tokens"], meta["cached_tokens"], len(said)), said


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """P50, P95 and P99 of times in seconds, as milliseconds."""
    return {name: round(1e3 * float(np.quantile(values, share)), 2) for name, share in QUANTILES.items()}


def figures(seen: Sequence[Seen]) -> dict[str, Any]:
    """Times, and the share of prompts' tokens that were cached, of some turns."""
    return {
        "turns": len(seen),
        "prompt_tokens": round(float(np.median([one.prompt for one in seen]))),
        "hit_rate": round(sum(one.cached for one in seen) / sum(one.prompt for one in seen), 4),
        "ttft_ms": quantiles([one.ttft for one in seen]),
        "tpot_ms": quantiles([one.tpot for one in seen]),
    }


def summarise(seen: Sequence[Seen], seconds: float) -> dict[str, Any]:
    """What all sessions saw: each turn, the first one, those after it, and the rates of the whole run."""

    last = max(one.turn for one in seen)
    answered = sum(one.answered for one in seen)
    return {
        "seconds": round(seconds, 1),
        "output_tokens_per_s": round(answered / seconds, 3),
        "turns_per_s": round(len(seen) / seconds, 4),
        "first": figures([one for one in seen if one.turn == 1]),
        "later": figures([one for one in seen if one.turn > 1]),
        "all": figures(seen),
        "by_turn": {
            str(turn): figures([one for one in seen if one.turn == turn]) for turn in range(1, last + 1)
        },
    }
