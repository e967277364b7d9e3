"""Time one layer's attention when a part of its pages is missed, fetched, attended on the CPU, or both.

    PYTHONPATH=scripts python -m benchmarks.miss_path --out docs/benchmarks/results/split_gpu.json

Qwen3-8B's shape, bfloat16, pages of 32 tokens: 128K tokens of context of which 10 % are selected, so 409 pages of 16 KB
per KV head and request, each of them missed with the same probability. Missed pages lie at random places of a host
pool far beyond the caches, at others in every replay. Every figure is the median replay of a CUDA graph of several
layers, over the number of layers: hits, misses, merge and launch included. The partition of ``auto`` rests on what the
same kernel was measured to take at the start and took in the replays before, as in a server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch

from common.measurement import gpu_in_words, keep_result, result_document
from rheo_kernels.cpu import CPU_ISA, fastest_isa
from rheo_kernels.cuda.offload import Costs
from rheo_kernels.types import Selected
from rheo_sglang.cpu_offload.cpu_attention import CpuAttention, default_cpu_threads
from rheo_sglang.cpu_offload.service import CpuService, MissTotals
from rheo_sglang.decode.costs import ALL_FETCHED, ALL_ON_CPU, measure_costs
from rheo_sglang.decode.cuda_attention import CudaAttention
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.pools.blocks import host_pool

HEADS, GROUP, DIM, PAGE = 8, 4, 128, 32
WIDTH, LAYERS, HOST_PAGES = 409, 6, 8200
PAGE_BYTES = 4 * DIM * PAGE
SCALE = DIM**-0.5
SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
BATCHES = (1, 4, 8)
MODES = ("fetch", "split", "auto")
MANY_PAGES = 500
"""Missed pages of a layer beyond which the CPU is to win by far."""
REPLAYS = 25


class Layers:
    """Pools and lists of a few layers.

    Parameters
    ----------
    threads
        Threads of the CPU's part.
    """

    def __init__(self, threads: int) -> None:
        frames = max(BATCHES) * WIDTH
        self.host = host_pool(LAYERS, HOST_PAGES, HEADS, DIM, PAGE, torch.bfloat16, True)
        for layer in self.host:
            layer[:64].copy_(torch.randn(layer[:64].shape).bfloat16())
            for start in range(64, HOST_PAGES, 64):
                part = layer[start : start + 64]
                part.copy_(layer[: len(part)])
        shape = (LAYERS, HEADS, frames, 2, DIM * PAGE)
        self.frames = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
        self.attention = CudaAttention(self.host, self.frames, HeadShape(HEADS, GROUP, DIM), PAGE)
        isa = fastest_isa(self.host[0].transpose(0, 1), GROUP, PAGE, threads)
        if isa is not None:
            os.environ[CPU_ISA] = isa
        self.step = torch.zeros((), dtype=torch.int32, device="cuda")
        self.costs = torch.tensor(ALL_ON_CPU, device="cuda")
        cpu = CpuAttention(self.host, max(BATCHES), GROUP, WIDTH, PAGE, threads, True)
        self.service = CpuService(cpu, LAYERS, self.step, self.costs)

    def selection(self, batch: int, share: float) -> list[Selected]:
        """A selection per layer of which that share is missed, more of one list than of another."""
        selections = []
        for _ in range(LAYERS):
            selected = Selected.allocate(batch, HEADS, WIDTH, "cuda")
            for request in range(batch):
                for head in range(HEADS):
                    order = torch.randperm(self.frames.shape[2], device="cuda")[:WIDTH]
                    selected.hits[request, head] = order.int()
                    pages = torch.randperm(HOST_PAGES - 1, device="cuda")[:WIDTH] + 1
                    selected.misses[request, head] = pages.int()
            selected.valid.fill_(PAGE)
            selected.num_hits.copy_((torch.rand(batch, HEADS, WIDTH) >= share).sum(2))
            selected.num_selected.fill_(WIDTH)
            selections.append(selected)
        return selections

    def time(self, batch: int, selections: list[Selected], costs: Costs) -> dict[str, float]:
        """Microseconds per layer, the share of the misses that the CPU attended, and the layers' timestamps."""
        q = torch.randn((batch, HEADS * GROUP, DIM), device="cuda").bfloat16()
        out = torch.empty_like(q)
        workspace = self.attention.workspace(batch, WIDTH)
        cpu_begin = torch.zeros((LAYERS, batch, HEADS), dtype=torch.int32, device="cuda")
        self.costs.copy_(torch.tensor(costs))

        for layer in range(LAYERS):
            self.attention.send_queries(q, self.service.prepare(layer, SCALE))

        def run() -> None:
            self.step.add_(1)
            for layer, selected in enumerate(selections):
                offload = self.service.prepare(layer, SCALE)
                self.attention.attend(
                    layer, selected, q, SCALE, workspace, out, None, offload, cpu_begin[layer]
                )

        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        before = self.service.totals()
        times = []
        for replay in range(REPLAYS):
            for selected in selections:
                selected.misses.random_(1, HOST_PAGES)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if replay > 2:
                times.append(start.elapsed_time(end) * 1e3 / LAYERS)
        last = selections[-1]
        missed = int((last.num_selected - last.num_hits).sum())
        by_cpu = int((last.num_selected - cpu_begin[-1]).sum())
        found = {"us": statistics.median(times), "cpu_share": by_cpu / max(missed, 1)}
        after = self.service.totals()
        totals = MissTotals(**{name: getattr(after, name) - getattr(before, name) for name in after._fields})
        if totals.layers:
            found["expected_us"] = totals.expected / totals.layers / 1e3
            found["signalled_us"] = totals.signalled / totals.layers / 1e3
            found["took_us"] = totals.merged / totals.layers / 1e3
            found["gpu_part_us"] = totals.gpu_done / totals.layers / 1e3
            found["cpu_seen_us"] = totals.cpu_seen / totals.layers / 1e3
        if totals.offloads:
            found["cpu_part_us"] = totals.cpu_busy / totals.offloads / 1e3
            found["late_cpu_threads"] = totals.late_threads / totals.offloads
        return found


def goals(metrics: dict[str, float], tpot: dict[str, Any] | None) -> dict[str, float]:
    """What the goals are read from: worst cases over all batches, and times per token with frames for 10 %."""
    tags = [key.removeprefix("missed_mib_") for key in metrics if key.startswith("missed_mib_")]
    many = [tag for tag in tags if metrics[f"missed_mib_{tag}"] * 2**20 > MANY_PAGES * PAGE_BYTES]
    found = {
        "split_over_fetch_throughput": min(metrics[f"fetch_us_{t}"] / metrics[f"split_us_{t}"] for t in many),
        "auto_over_fetch_throughput": min(metrics[f"fetch_us_{t}"] / metrics[f"auto_us_{t}"] for t in many),
        "auto_vs_best_worst_case": max(metrics[f"auto_vs_better_{tag}"] for tag in tags),
    }
    if tpot is not None:
        engine = tpot["metrics"]["10pct-bs1"]
        found |= {f"tpot_ms_{mode}": engine[f"128k_bs1_{mode}"]["tpot_ms"] for mode in MODES}
    return found


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--tpot", type=Path, help="tpot_gpu.json of the same machine: times per token go in as well"
    )
    parser.add_argument("--threads", type=int, help="threads of the CPU's part; by default half of the cores")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    threads = arguments.threads or default_cpu_threads()
    layers = Layers(threads)
    costs = measure_costs(layers.attention, layers.service, HeadShape(HEADS, GROUP, DIM))
    metrics: dict[str, float] = {f"cost_{name}_us": value for name, value in costs._asdict().items()}
    print({name: round(value, 3) for name, value in metrics.items()}, flush=True)
    for batch in BATCHES:
        for share in SHARES:
            tag = f"bs{batch}_{round(100 * share)}pct"
            selections = layers.selection(batch, share)
            missed = sum(int((each.num_selected - each.num_hits).sum()) for each in selections) / LAYERS
            metrics[f"missed_mib_{tag}"] = missed * PAGE_BYTES / 2**20
            for mode, way in zip(MODES, (ALL_FETCHED, ALL_ON_CPU, costs), strict=True):
                found = layers.time(batch, selections, way)
                metrics |= {f"{mode}_{name}_{tag}": value for name, value in found.items()}
            better = min(metrics[f"fetch_us_{tag}"], metrics[f"split_us_{tag}"])
            metrics[f"auto_vs_better_{tag}"] = metrics[f"auto_us_{tag}"] / better
            print(tag, {k: round(v, 2) for k, v in metrics.items() if k.endswith(tag)}, flush=True)
    metrics |= goals(metrics, json.loads(arguments.tpot.read_text()) if arguments.tpot else None)
    shape = (
        f"32 query and 8 KV heads of 128, page 32, bfloat16; {WIDTH} pages selected; {threads} CPU threads"
    )
    rounded = {key: round(value, 4) for key, value in metrics.items()}
    keep_result(arguments.out, result_document("split_gpu", rounded, gpu_in_words(), shape))


if __name__ == "__main__":
    main()
