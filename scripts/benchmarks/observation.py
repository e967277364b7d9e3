#!/usr/bin/env python3
"""What watching a server costs: a reading of its counters, the snapshot made of it, and showing that.

PYTHONPATH=scripts python -m benchmarks.observation
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import prometheus_client
import torch

from common.measurement import write_result
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.engine import EngineInputs
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.reference_engine import ReferenceDecodeEngine
from rheo_sglang.observability.exporter import MetricsExporter
from rheo_sglang.observability.log_line import log_line
from rheo_sglang.observability.snapshot import gather
from rheo_sglang.pools.allocator import RheoAllocator
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.recorder import Recorder

NAME = "observation_cpu"
LAYERS, KV_HEADS, GROUP, DIM, PAGE = 30, 3, 3, 64, 32
"""SmolLM2-135M's shape."""
PAGES, FRAMES, REQUESTS = 4096, 512, 32
CONTEXT = 4096
RUNS = 200


def engine() -> tuple[ReferenceDecodeEngine, RheoAllocator]:
    """An engine over pools of that shape, as of a server without a GPU, with as many requests recorded as may run."""
    config = RheoConfig(recorder="hits")
    pool = RheoKVPool(PAGES * PAGE, PAGE, torch.float32, KV_HEADS, DIM, LAYERS, "cpu", FRAMES, config)
    recorder = Recorder(REQUESTS, LAYERS, KV_HEADS, "cpu", False, True, False)
    tokens = torch.zeros((REQUESTS, CONTEXT), dtype=torch.int32)
    heads = HeadShape(KV_HEADS, GROUP, DIM)
    inputs = EngineInputs(config, pool.table, pool.host, pool.frames, heads, PAGE, tokens, CONTEXT, recorder)
    recorder.begin_step([str(number) for number in range(REQUESTS)], torch.full((REQUESTS,), CONTEXT // PAGE))
    allocator = RheoAllocator(pool, need_sort=False)
    pool.table.settle()
    return ReferenceDecodeEngine(inputs), allocator


def median_us(call: Callable[[], Any]) -> float:
    """Microseconds of a call: the median of `RUNS`."""
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return round(1e6 * statistics.median(taken), 1)


def main() -> None:
    """Measure each part and write the result."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    served, allocator = engine()
    registry = prometheus_client.CollectorRegistry()
    classes = {
        "_counter_cls": partial(prometheus_client.Counter, registry=registry),
        "_gauge_cls": partial(prometheus_client.Gauge, registry=registry),
    }
    labels = dict.fromkeys(("model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank"), "0")
    exporter = MetricsExporter(SimpleNamespace(labels=labels, **classes))
    reading = served.readings.now()
    snapshot = gather(served, allocator, reading, None)
    parts = {
        "reading": median_us(served.readings.now),
        "snapshot": median_us(lambda: gather(served, allocator, reading, None)),
        "export": median_us(lambda: exporter.export(snapshot)),
        "log line": median_us(lambda: log_line(snapshot, snapshot)),
    }
    shape = {"layers": LAYERS, "kv_heads": KV_HEADS, "pages": PAGES, "frames": FRAMES, "requests": REQUESTS}
    write_result(NAME, {"shape": shape, "us": parts})


if __name__ == "__main__":
    main()
