#!/usr/bin/env python3
"""Random prompts, shared prefixes and aborts in prefill: rheo with every page selected against dense attention.

    PYTHONPATH=scripts python -m exactness.fuzz_prefill [--seed N] [--out FILE]

SmolLM2 answers random cuts of a few documents with random tails, a few requests at a time. rheo keeps 512 tokens of KV
in HBM and prefills in chunks of several sizes, so that most of every cached prefix has to come back from host pages;
some requests are aborted in the middle of prefill or of decoding. Where there is a GPU, bfloat16 against fa3, and a
first difference counts as a tie if fa3 puts the two tokens that close; elsewhere float32 against torch_native, and none
may differ. In the end, an empty cache must leave no page in use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.engine_benchmark import flush
from common.measurement import (
    MODEL,
    gpu_in_words,
    keep_result,
    machine_in_words,
    result_document,
    text_prompts,
)
from common.sglang_server import CPU_ENVIRONMENT
from exactness.greedy_gpu import TOP, differences, is_tie

GPU = torch.cuda.is_available()
DOCUMENTS = (3400, 2600, 1500)
REQUESTS = 24
AT_ONCE = 6
MOST_TAIL, MOST_NEW = 300, 24
ABORTED = 0.25
SECONDS_TO_ABORT = 0.5 if GPU else 3.0
SELECT_ALL = {"budget_ratio": 1.0, "dense_threshold": 0, "frame_pool_tokens": 512}
ENGINES: dict[str, dict[str, Any]] = {
    "dense": {"attention_backend": "fa3" if GPU else "torch_native", "disable_radix_cache": True},
    "chunks of 128, pages of 16": {"chunked_prefill_size": 128, "page_size": 16},
    "chunks of 512, pages of 32": {"chunked_prefill_size": 512, "page_size": 32},
    "chunks of 1024, pages of 64": {"chunked_prefill_size": 1024, "page_size": 64},
    "chunks of 8192, pages of 32": {"chunked_prefill_size": 8192, "page_size": 32},
}


@dataclass(frozen=True)
class Request:
    """One prompt, how many tokens it asks for, and after how many of them (None: never) or seconds it is aborted."""

    ids: list[int]
    new_tokens: int
    abort_after_tokens: int | None
    abort_after_s: float


def make_requests(model: Path, seed: int) -> list[Request]:
    """Random requests, the same for the same seed."""
    source = random.Random(seed)
    tails = [source.randint(1, MOST_TAIL) for _ in range(REQUESTS)]
    *documents, pool = text_prompts(model, [*DOCUMENTS, sum(tails)])
    requests = []
    for tail in tails:
        document = source.choice(documents)
        ids = document[: source.randint(1, len(document))] + pool[:tail]
        pool = pool[tail:]
        new_tokens = source.randint(1, MOST_NEW)
        aborted = source.random() < ABORTED
        after = source.randrange(new_tokens) if aborted else None
        requests.append(Request(ids, new_tokens, after, source.random() * SECONDS_TO_ABORT))
    return requests


async def send(engine: Any, number: int, request: Request, aborts: bool, gate: asyncio.Semaphore) -> Any:
    """One answer: its tokens, the likeliest ones at every position, and its cached tokens."""
    rid = f"fuzz-{number}"
    sampling = {"temperature": 0.0, "max_new_tokens": request.new_tokens, "ignore_eos": True}
    aborts = aborts and request.abort_after_tokens is not None
    async with gate:
        stream = await engine.async_generate(
            input_ids=request.ids,
            sampling_params=sampling,
            rid=rid,
            stream=True,
            return_logprob=True,
            top_logprobs_num=TOP,
        )

        async def abort() -> None:
            await asyncio.sleep(request.abort_after_s)
            engine.tokenizer_manager.abort_request(rid=rid)

        early = asyncio.create_task(abort()) if aborts and request.abort_after_tokens == 0 else None
        tokens: list[int] = []
        top: list[Any] = []
        cached = 0
        async for part in stream:
            tokens, meta = part["output_ids"], part["meta_info"]
            top = meta.get("output_top_logprobs") or top
            cached = meta["cached_tokens"]
            if aborts and request.abort_after_tokens and len(tokens) >= request.abort_after_tokens:
                engine.tokenizer_manager.abort_request(rid=rid)
        if early is not None:
            early.cancel()
    pairs = [[[float(entry[0]), int(entry[1])] for entry in position] for position in top]
    return {"tokens": tokens, "top": pairs, "cached": cached}


def serve(name: str, model: Path, requests: list[Request]) -> dict[str, Any]:
    """All answers of one engine, and what it has in use once its cache is empty."""
    import sglang

    engine = sglang.Engine(
        **{"attention_backend": "rheo", **ENGINES[name]},
        model_path=str(model),
        dtype="bfloat16" if GPU else "float32",
        device="cuda" if GPU else "cpu",
        max_total_tokens=32768,
        max_running_requests=AT_ONCE,
        context_length=8192,
        cuda_graph_bs_decode=[1, 2, 4, AT_ONCE],
        disable_prefill_cuda_graph=True,
        mem_fraction_static=0.5,
        log_level="warning",
        grammar_backend="none",
        skip_tokenizer_init=True,
        incremental_streaming_output=False,
    )

    async def all_of_them() -> list[Any]:
        gate = asyncio.Semaphore(AT_ONCE)
        return await asyncio.gather(
            *(send(engine, number, request, name != "dense", gate) for number, request in enumerate(requests))
        )

    answers = engine.loop.run_until_complete(all_of_them())
    flush(engine)
    state = engine.get_server_info()["internal_states"][0].get("rheo") or {"counters": {}}
    engine.shutdown()
    return {"answers": answers, "counters": state["counters"]}


def run_engine(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Answers of one engine in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [
            sys.executable,
            "-m",
            "exactness.fuzz_prefill",
            "--model",
            str(arguments.model),
            "--seed",
            str(arguments.seed),
        ]
        environment = {**os.environ, **({} if GPU else CPU_ENVIRONMENT), "RHEO_CONFIG": "{}"}
        if name != "dense":
            environment["RHEO_CONFIG"] = json.dumps(SELECT_ALL)
        start = time.monotonic()
        subprocess.run([*command, "--engine", name, "--found", file.name], check=True, env=environment)
        found: dict[str, Any] = json.loads(Path(file.name).read_text())
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return found


def compare(requests: list[Request], dense: list[Any], mine: list[Any]) -> dict[str, Any]:
    """How one engine's answers relate to the dense ones: an aborted answer to the dense one's beginning."""
    cut = [
        {"tokens": one["tokens"][: len(other["tokens"])], "top": one["top"]}
        for one, other in zip(dense, mine, strict=True)
    ]
    found = differences(cut, mine)
    ties = sum(GPU and is_tie(one) for one in found)
    whole = [len(one["tokens"]) == request.new_tokens for one, request in zip(mine, requests, strict=True)]
    incomplete = sum(
        not done and request.abort_after_tokens is None for done, request in zip(whole, requests, strict=True)
    )
    return {
        "answers_that_differ": len(found),
        "of_them_ties": ties,
        "first_differences": found,
        "tokens_compared": sum(len(one["tokens"]) for one in mine),
        "aborted_answers": sum(not done for done in whole) - incomplete,
        "answers_cut_short_by_nobody": incomplete,
        "cached_tokens": sum(one["cached"] for one in mine),
    }


def main() -> int:
    """Run every engine and compare; 1 if an answer is wrong or a page is left in use."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="SmolLM2's checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    requests = make_requests(arguments.model, arguments.seed)
    if arguments.engine:
        arguments.found.write_text(json.dumps(serve(arguments.engine, arguments.model, requests)))
        return 0
    dense = run_engine("dense", arguments)["answers"]
    cases: dict[str, Any] = {}
    failed = False
    for name in list(ENGINES)[1:]:
        found = run_engine(name, arguments)
        case = compare(requests, dense, found["answers"])
        counters = found["counters"]
        case["pages_left"], case["frames_left"] = counters["pages_allocated"], counters["frames_used"]
        cases[name] = case
        print(name, {key: value for key, value in case.items() if key != "first_differences"}, flush=True)
        failed |= case["answers_that_differ"] > case["of_them_ties"]
        failed |= any(case[key] > 0 for key in ("answers_cut_short_by_nobody", "pages_left", "frames_left"))
    metrics = {
        "model": f"SmolLM2-135M-Instruct, {'bfloat16' if GPU else 'float32'}",
        "dense": ENGINES["dense"]["attention_backend"],
        "seed": arguments.seed,
        "prompt_tokens": [len(request.ids) for request in requests],
        "aborts": sum(request.abort_after_tokens is not None for request in requests),
        "rheo": SELECT_ALL,
        "cases": cases,
    }
    name = "fuzz_prefill_gpu" if GPU else "fuzz_prefill_cpu"
    document = result_document(name, metrics, gpu_in_words() if GPU else machine_in_words())
    if arguments.out is not None:
        keep_result(arguments.out, document)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
