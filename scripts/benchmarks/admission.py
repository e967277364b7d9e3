#!/usr/bin/env python3
"""Throughput and time per output token under overload, with and without admission by working set.

    PYTHONPATH=scripts python -m benchmarks.admission --model FOLDER --out FILE     on a GPU
    PYTHONPATH=scripts python -m benchmarks.admission --small                       SmolLM2 without a GPU

SGLang's ``bench_serving`` asks about documents of real text, as many at a time as the concurrency says, each of them
twice. The documents are in the radix cache before anything is measured, so that decode steps decide. One server after
the other:

- ``admission``: by working set, as by default on a GPU;
- ``thrash_control``: admitted whatever the working sets, so that only shrinking budgets and pausing are left;
- ``off``: neither.

Figures of each concurrency: output tokens per second, TPOT (median, P95, P99), time to first token, hit rate over the
run's steps, working sets of the fullest layer at the end over frames, and what the controller did.
``relative_throughput`` is that of ``admission`` over ``off``, ``throughput_ratio_with_control`` its least value;
``relative_p99_tpot`` and ``p99_tpot_ratio_with_control``, its greatest, are of the P99 TPOT. Without a GPU misses cost
no more than hits: there, hit rates and the controller are what the figures show, and throughput says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.bench_serving import bench, documents, write_dataset
from common.measurement import (
    MODEL,
    RESULTS,
    gpu_in_words,
    keep_result,
    machine_in_words,
    result_document,
)
from common.servers_in_turn import going_on
from common.sglang_server import SGLangServer

SERVERS: dict[str, dict[str, Any]] = {
    "admission": {"admission": "working_set"},
    "thrash_control": {"admission": "working_set", "admission_overcommit": 1000.0},
    "off": {"admission": "off"},
}


@dataclass(frozen=True)
class Size:
    """What is asked of a server."""

    document_tokens: int
    answer_tokens: int
    concurrencies: tuple[int, ...]
    config: dict[str, Any]
    arguments: tuple[str, ...]


SIZES = {
    "gpu": Size(
        28000,
        1024,
        (8, 16, 32, 48, 64, 96),
        {"frame_pool_gib": 4, "host_pool_gib": 96},
        (
            *("--context-length", "32768", "--max-running-requests", "96", "--mem-fraction-static", "0.8"),
            *("--cuda-graph-bs-decode", "8", "16", "24", "48", "72", "96", "--disable-prefill-cuda-graph"),
            *("--grammar-backend", "none", "--tokenizer-worker-num", "8"),
        ),
    ),
    "cpu": Size(
        1200,
        128,
        (6,),
        {
            "frame_pool_tokens": 1024,
            "budget_ratio": 0.25,
            "budget_min_pages": 4,
            "dense_threshold": 0,
        },
        ("--context-length", "2048", "--max-running-requests", "8", "--max-total-tokens", "24576"),
    ),
}


def state(server: SGLangServer) -> dict[str, Any]:
    """What the server tells of its first scheduler."""
    return server.server_info()["internal_states"][0]["rheo"]


def hit_rate(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """Selected pages that had a frame, over the requests that ``after`` has beyond ``before``."""
    seen = {entry["rid"] for entry in before["recorder"]["requests"]}
    new = [entry for entry in after["recorder"]["requests"] if entry["rid"] not in seen]
    samples = sum(entry["samples"] for entry in new)
    return round(sum(entry["hit_rate"] * entry["samples"] for entry in new) / samples, 4) if samples else None


def did(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """What the controller did between two states, by action."""
    if after["admission"] is None:
        return {}
    counters = (one["admission"]["counters"] for one in (before, after))
    first, last = counters
    return {name: last[name] - first[name] for name in last if last[name] > first[name]}


@contextmanager
def serving(
    model: Path, size: Size, settings: dict[str, Any], gpu: bool, log: Path | None
) -> Iterator[SGLangServer]:
    """A server with some settings beyond the size's."""
    arguments = ["--attention-backend", "rheo", *size.arguments]
    arguments += ["--rheo-config", json.dumps({**size.config, **settings})]
    with tempfile.TemporaryDirectory() as folder:
        path = log or Path(folder) / "server.log"
        with SGLangServer(model, arguments, path, gpu=gpu) as server:
            yield server


def measure(
    server: SGLangServer, size: Size, texts: list[str], concurrencies: list[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every concurrency and its figures, after each document has been asked about once."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "documents.json"
        write_dataset(texts, dataset)
        bench(server, dataset, len(texts), min(concurrencies), 4)
        for concurrency in concurrencies:
            write_dataset(texts[:concurrency] * 2, dataset)
            before = state(server)
            figures = bench(server, dataset, 2 * concurrency, concurrency, size.answer_tokens)
            after = state(server)
            sets = after["working_sets"]
            figures["hit_rate"] = hit_rate(before, after)
            figures["working_sets_over_frames"] = round(max(sets["layers"]) / sets["frames"], 2)
            figures["controller"] = did(before, after)
            print(f"{concurrency} at once: {json.dumps(figures)}", flush=True)
            yield str(concurrency), figures


def summary(found: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Throughput and P99 TPOT with admission over those without, of each concurrency, and the worst of both."""
    if not {"admission", "off"} <= set(found):
        return {}

    def ratios(figure: str) -> dict[str, float]:
        return {
            concurrency: round(figures[figure] / without[figure], 3)
            for concurrency, figures in found["admission"].items()
            if (without := found["off"].get(concurrency))
        }

    throughput, tpot = ratios("output_throughput"), ratios("p99_tpot_ms")
    if not throughput:
        return {}
    return {
        "relative_throughput": throughput,
        "throughput_ratio_with_control": min(throughput.values()),
        "relative_p99_tpot": tpot,
        "p99_tpot_ratio_with_control": max(tpot.values()),
    }


def main() -> None:
    """Measure the servers and write the result after every concurrency."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint folder")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="a size for a CPU, without a GPU")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--concurrency", nargs="+", type=int, help="others than the size's")
    parser.add_argument("--set", default="{}", help="more settings, as JSON")
    parser.add_argument("--logs", type=Path, help="folder that keeps the servers' logs")
    arguments = parser.parse_args()
    name = "admission_cpu" if arguments.small else "admission"
    size = SIZES["cpu" if arguments.small else "gpu"]
    concurrencies = sorted(arguments.concurrency or size.concurrencies)
    texts = documents(arguments.model, max(concurrencies), size.document_tokens)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    machine = machine_in_words() if arguments.small else gpu_in_words()
    found: dict[str, dict[str, dict[str, Any]]] = {}
    failed: list[str] = []
    for server_name in arguments.servers:
        print(f"== {server_name}", flush=True)
        settings = {**json.loads(arguments.set), **SERVERS[server_name]}
        log = arguments.logs / f"{server_name}.log" if arguments.logs else None
        found[server_name] = {}
        with (
            going_on(server_name, failed),
            serving(arguments.model, size, settings, not arguments.small, log) as server,
        ):
            for concurrency, figures in measure(server, size, texts, concurrencies):
                found[server_name][concurrency] = figures
                metrics = {**summary(found), **found, "size": asdict(size), "model": arguments.model.name}
                keep_result(
                    arguments.out or RESULTS / f"{name}.json", result_document(name, metrics, machine)
                )
    print(json.dumps(summary(found), indent=1))
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
