#!/usr/bin/env python3
"""Agent sessions whose KV is several times the memory for it: first tokens, gaps and prefix hits of every turn.

    PYTHONPATH=scripts python -m benchmarks.agents                                            SmolLM2 without a GPU
    PYTHONPATH=scripts python -m benchmarks.agents --model FOLDER --size 8b --kv-gib 16       on a GPU
    PYTHONPATH=scripts python -m benchmarks.agents --model FOLDER --size coder --kv-gib 4     on a GPU
    PYTHONPATH=scripts python -m benchmarks.agents --write-trace FILE                         sessions for bench_serving

A session is a long first prompt and then, turn by turn, the model's answer and the output of a tool: files of Python's
own sources. Histories only grow. So many sessions are held that their KV is ``--times`` that of the pool that a dense
server has; they take turns, so that a session's prefix is the one that was used longest ago when its next turn comes.
Every server has the same memory for KV: on a GPU fa3 and HiCache a pool of that size (HiCache with DRAM beyond it) and
rheo its frames, page summaries and page table together; without a GPU torch_native a pool of tokens and rheo frames for
as many.

Times are those of clients that stream: to the first token (TTFT), and then per token (TPOT). ``hit_rate`` is the share
of prompts' tokens that came from the cache. ``--loader`` also has SGLang's own ``bench_serving`` replay the sessions
with its agentic loader, after a flush.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.agent_clients import AgentClients, summarise
from benchmarks.serving import dense_tokens, engines, kv_bytes_of_a_token, told
from common.bench_serving import bench_agents
from common.measurement import (
    MODEL,
    RESULTS,
    gpu_in_words,
    keep_result,
    machine_in_words,
    result_document,
    tokenizer,
)
from common.servers_in_turn import going_on
from common.sglang_server import SGLangServer
from workloads.agent_sessions import AgentLoad, Encode, Turns, agent_sessions, write_trace

GPU = torch.cuda.is_available()
SLACK = 1.1
"""Room in DRAM beyond what all sessions take, and in a context beyond the longest session."""
MESSAGE_TOKENS = 16
"""Most tokens by which the frame of a message lengthens a prompt."""
FRAMES_SHARE = 0.6
"""Of the memory for KV, rheo's frames on a GPU; the rest is page summaries and page table."""
LONGER = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
"""Sessions may be longer than what a checkpoint says of its context: answers are not judged here."""


SHORT = {"budget_ratio": 0.2, "budget_min_pages": 8, "dense_threshold": 256}
"""Settings by which sessions that are short select pages at all."""


@dataclass(frozen=True)
class Size:
    """Sessions, and the memory for KV of a server that holds them.

    Attributes
    ----------
    load
        How long sessions are.
    kv_tokens
        Tokens of the pool without a GPU.
    kv_gib
        Memory for KV on a GPU, GiB.
    at_once
        Most requests that run at a time.
    config
        Settings of rheo.
    """

    load: AgentLoad
    kv_tokens: int
    kv_gib: float
    at_once: int
    config: dict[str, Any] = field(default_factory=dict)


SIZES = {
    "8b": Size(AgentLoad(turns=13, first=74_000, tool=1_000, answer=220), 0, 16.0, 4),
    "coder": Size(AgentLoad(turns=13, first=32_000, tool=1_000, answer=220), 0, 4.0, 8),
    "cpu": Size(AgentLoad(turns=13, first=600, tool=40, answer=8), 1_536, 0.0, 2, SHORT),
}


@dataclass(frozen=True)
class Plan:
    """What is measured: sizes in tokens, and the servers' arguments."""

    size: Size
    pool_tokens: int
    sessions: int
    servers: dict[str, list[str]]


def plan(model: Path, size: Size, times: float, config: dict[str, Any], gpu: bool) -> Plan:
    """Sessions for ``times`` the memory for KV, and the servers that hold them.

    Raises
    ------
    ValueError
        If one session does not fit into a dense pool.
    """
    load, settings = size.load, {**size.config, **config}
    tokens = dense_tokens(model, size.kv_gib) if gpu else size.kv_tokens
    context = int(SLACK * load.longest) + MESSAGE_TOKENS * load.turns
    if context > tokens:
        raise ValueError(f"a session of {load.longest} tokens does not fit into {tokens} tokens of KV")
    sessions = load.sessions(tokens, times)
    host_tokens = int(SLACK * sessions * context)
    common = ["--context-length", str(context), "--max-running-requests", str(size.at_once)]
    if gpu:
        host_gib = -(-host_tokens * kv_bytes_of_a_token(model) // 2**30)
        common += ["--cuda-graph-max-bs", str(size.at_once), "--mem-fraction-static", "0.8"]
        frames = FRAMES_SHARE * size.kv_gib
        servers = engines(model, size.kv_gib, frames, settings, dram_gib=host_gib, host_gib=host_gib)
    else:
        frames_and_more = json.dumps({"frame_pool_tokens": tokens, **settings})
        servers = {
            "torch_native": ["--attention-backend", "torch_native", "--max-total-tokens", str(tokens)],
            "rheo": [
                *("--attention-backend", "rheo", "--max-total-tokens", str(host_tokens)),
                *("--rheo-config", frames_and_more),
            ],
        }
    return Plan(size, tokens, sessions, {name: [*common, *line] for name, line in servers.items()})


def measure(
    server: SGLangServer, name: str, sessions: list[Turns], encode: Encode, size: Size, trace: Path | None
) -> dict[str, Any]:
    """Figures of one server; a trace is replayed by SGLang's loader afterwards."""
    clients = AgentClients(server.base_url, encode, size.load.answer, size.at_once)
    seconds = clients.run(sessions, name)
    found = {**summarise(clients.seen, seconds), "load_average": round(os.getloadavg()[1], 1)}
    print(
        f"{name}: {json.dumps({key: found[key] for key in ('output_tokens_per_s', 'first', 'later')})}",
        flush=True,
    )
    if name == "rheo":
        found["told"] = told(server)
    if trace is not None:
        server.flush_cache(timeout=60.0)
        found["loader"] = bench_agents(server, trace, len(sessions), size.at_once, size.load.answer)
        print(f"{name}, SGLang's loader: {json.dumps(found['loader'])}", flush=True)
    return found


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """rheo's throughput as a multiple of every other server's, its times to first tokens as a part of theirs."""
    result: dict[str, float] = {}
    ours = found.get("rheo")
    for engine, theirs in found.items():
        if ours is None or engine == "rheo":
            continue
        rate = ours["output_tokens_per_s"] / theirs["output_tokens_per_s"]
        result[f"throughput_vs_{engine}"] = round(rate, 3)
        for times, name in (
            ("ttft", "p50"),
            ("ttft", "p95"),
            ("ttft", "p99"),
            ("tpot", "p50"),
            ("tpot", "p99"),
        ):
            part = ours["later"][f"{times}_ms"][name] / theirs["later"][f"{times}_ms"][name]
            result[f"later_{times}_{name}_vs_{engine}"] = round(part, 3)
    return result


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is not given is the size's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint folder")
    parser.add_argument("--size", choices=SIZES, default="8b" if GPU else "cpu")
    parser.add_argument("--first", type=int, help="tokens of the first prompt")
    parser.add_argument("--tool", type=int, help="tokens of a tool's output")
    parser.add_argument("--answer", type=int, help="tokens of an answer")
    parser.add_argument("--turns", type=int, help="requests of a session")
    parser.add_argument("--kv-gib", type=float, help="memory for KV of every server on a GPU, GiB")
    parser.add_argument("--kv-tokens", type=int, help="tokens of every server's KV without a GPU")
    parser.add_argument("--at-once", type=int, help="requests that run at a time")
    parser.add_argument("--times", type=float, default=4.0, help="KV of all sessions over the memory for it")
    parser.add_argument("--engines", nargs="+", help="some of the servers; all by default")
    parser.add_argument("--set", default="{}", help="settings of rheo, as JSON")
    parser.add_argument("--loader", action="store_true", help="also SGLang's agentic loader")
    parser.add_argument("--write-trace", type=Path, help="only write the sessions for that loader")
    parser.add_argument("--logs", type=Path, help="folder that keeps the servers' logs")
    parser.add_argument("--out", type=Path, default=RESULTS / f"agents_{'gpu' if GPU else 'cpu'}.json")
    return parser.parse_args(arguments)


def size_of(options: argparse.Namespace) -> Size:
    """The size that the command line names, with what it changes of it."""

    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(options, name) for name in names if getattr(options, name) is not None}

    size = SIZES[options.size]
    load = replace(size.load, **given("first", "tool", "answer", "turns"))
    return replace(size, load=load, **given("kv_gib", "kv_tokens", "at_once"))


def main() -> None:
    """Measure the servers, one after the other, and write the result after each."""
    options = options_of()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    size = size_of(options)
    planned = plan(options.model, size, options.times, json.loads(options.set), GPU)
    encode = functools.partial(tokenizer(options.model).encode, add_special_tokens=False)
    sessions = agent_sessions(encode, size.load, planned.sessions)
    if options.write_trace is not None:
        write_trace(sessions, size.load, options.write_trace)
        return
    found: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "sessions.json" if options.loader else None
        if trace is not None:
            write_trace(sessions, size.load, trace)
        for engine in options.engines or planned.servers:
            print(f"== {engine}: {planned.sessions} sessions of {size.load.longest} tokens", flush=True)
            log = (options.logs or Path(folder)) / f"agents_{engine}.log"
            line = planned.servers[engine]
            with (
                going_on(engine, failed),
                SGLangServer(options.model, line, log, environment=LONGER, gpu=GPU) as server,
            ):
                found[engine] = measure(server, engine, sessions, encode, size, trace)
            metrics = {
                **ratios(found),
                **found,
                "model": options.model.name,
                "sessions": planned.sessions,
                "tokens_of_a_session": size.load.longest,
                "first_prompt_tokens": size.load.first,
                "tool_tokens": size.load.tool,
                "answer_tokens": size.load.answer,
                "turns": size.load.turns,
                "at_once": size.at_once,
                "kv_tokens": planned.pool_tokens,
                "kv_times": round(planned.sessions * size.load.longest / planned.pool_tokens, 2),
                "servers": {name: " ".join(line) for name, line in planned.servers.items()},
            }
            machine = gpu_in_words() if GPU else machine_in_words()
            keep_result(options.out, result_document(options.out.stem, metrics, machine))
    print(json.dumps(ratios(found), indent=1))
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
