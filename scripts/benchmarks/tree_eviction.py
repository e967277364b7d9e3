#!/usr/bin/env python3
"""Eviction from the radix tree by recency and by importance: agents' sessions and a host pool of half their tokens.

    PYTHONPATH=scripts python -m benchmarks.tree_eviction

Every session begins with one system prompt and grows by tool outputs, passages of real text, and by what the model
answers. Sessions take turns at random, some more often than others; now and then somebody asks about a document that
nobody needs again. All orders see the same requests, one at a time. Of each: prefix hit rate (cached over all prompt
tokens), recomputed tokens (computed though an earlier request had computed them) and time to first token. On a GPU:
``--gpu`` and another model. Writes ``docs/benchmarks/results/tree_eviction_cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from common.measurement import MODEL, gpu_in_words, text_prompts, write_result
from common.sglang_server import SGLangServer

ORDERS = ("sglang", "importance")
PAGE_SIZE = 32
CONFIG = {"budget_ratio": 0.2, "budget_min_pages": 8, "dense_threshold": 0, "frame_pool_tokens": 1024}
QUESTION_EVERY = 3
"""Turns of sessions between two questions that nothing follows."""


class Turn(NamedTuple):
    """One request: the session that it belongs to, or none, and the tokens that are new in it."""

    session: int | None
    tokens: list[int]


def workload(model: Path, options: argparse.Namespace) -> tuple[list[int], list[Turn]]:
    """The system prompt and all turns, in order."""
    draw = random.Random(options.seed)
    sizes = [draw.randint(options.output // 2, options.output * 3 // 2) for _ in range(options.turns)]
    questions = [options.output] * (options.turns // QUESTION_EVERY)
    passages = text_prompts(model, [options.system, *sizes, *questions])
    system, outputs, documents = passages[0], passages[1 : len(sizes) + 1], passages[len(sizes) + 1 :]
    weights = [1 / (1 + session) for session in range(options.sessions)]
    turns: list[Turn] = []
    for place, output in enumerate(outputs, 1):
        turns.append(Turn(draw.choices(range(options.sessions), weights)[0], output))
        if place % QUESTION_EVERY == 0 and documents:
            turns.append(Turn(None, documents.pop()))
    return system, turns


def total_tokens(system: list[int], turns: list[Turn], answer: int) -> int:
    """Tokens of all prefixes together, each counted once: what a host pool without eviction needs."""
    return len(system) + sum(len(turn.tokens) + answer for turn in turns)


def shared_pages(prompt: list[int], before: list[list[int]]) -> int:
    """Whole pages with which the prompt and an earlier sequence begin alike."""
    most = 0
    for other in before:
        page = 0
        while (end := (page + 1) * PAGE_SIZE) <= min(len(prompt) - 1, len(other)) and (
            prompt[end - PAGE_SIZE : end] == other[end - PAGE_SIZE : end]
        ):
            page += 1
        most = max(most, page)
    return most


def play(server: SGLangServer, system: list[int], turns: list[Turn], answer: int) -> dict[str, Any]:
    """Send all turns; what was cached, computed anew, and waited for."""
    histories: dict[int, list[int]] = {}
    before: list[list[int]] = []
    prompt_tokens = cached_tokens = repeated = 0
    waits = []
    for turn in tqdm(turns, unit="request"):
        history = system if turn.session is None else histories.get(turn.session, system)
        prompt = history + turn.tokens
        started = time.perf_counter()
        answers = server.stream(prompt, answer, timeout=1200, ignore_eos=True)
        reply = next(answers)
        wait = time.perf_counter() - started
        for later in answers:
            reply = later
        cached = reply["meta_info"]["cached_tokens"]
        prompt_tokens += len(prompt)
        cached_tokens += cached
        repeated += shared_pages(prompt, before) * PAGE_SIZE - cached
        waits.append(wait)
        before.append(prompt + reply["output_ids"])
        if turn.session is not None:
            histories[turn.session] = before[-1]
    return {
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "prefix_hit_rate": round(cached_tokens / prompt_tokens, 4),
        "recomputed_tokens": repeated,
        "ttft_s": {
            "mean": round(statistics.mean(waits), 4),
            "median": round(statistics.median(waits), 4),
            "p90": round(statistics.quantiles(waits, n=10)[-1], 4),
        },
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the workload."""
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--sessions", type=int, default=6)
    parser.add_argument("--turns", type=int, default=36, help="turns of all sessions")
    parser.add_argument("--system", type=int, default=512, help="tokens of the system prompt")
    parser.add_argument("--output", type=int, default=192, help="mean tokens of a tool output")
    parser.add_argument("--answer", type=int, default=8, help="tokens that the model answers")


def main() -> None:
    """Measure every order in a server of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--share", type=float, default=0.5, help="host pool over all tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--name", default="tree_eviction_cpu", help="of the result")
    options = parser.parse_args()
    system, turns = workload(options.model, options)
    needed = total_tokens(system, turns, options.answer)
    pool = int(needed * options.share) // PAGE_SIZE * PAGE_SIZE
    results: dict[str, Any] = {}
    for order in ORDERS:
        with tempfile.TemporaryDirectory() as folder:
            config = CONFIG | {"tree_eviction": order, "host_pool_gib": 2.0}
            arguments = ["--attention-backend", "rheo", "--rheo-config", json.dumps(config)]
            arguments += ["--page-size", str(PAGE_SIZE), "--max-total-tokens", str(pool)]
            arguments += ["--max-running-requests", "1"]
            log = Path(folder) / "server.log"
            with SGLangServer(options.model, arguments, log, gpu=options.gpu) as server:
                server.generate(turns[0].tokens, 4)
                server.flush_cache()
                results[order] = play(server, system, turns, options.answer)
        print(order, json.dumps(results[order]))
    metrics = {
        "model": options.model.name,
        "requests": len(turns),
        "tokens_of_all_prefixes": needed,
        "host_pool_tokens": pool,
        "orders": results,
    }
    print(write_result(options.name, metrics, gpu_in_words() if options.gpu else None))


if __name__ == "__main__":
    main()
