"""costs: measure what a miss takes to fetch and to attend on the CPU, with the kernel that does both."""

from __future__ import annotations

import logging
import statistics

import torch

from rheo_kernels.cuda.offload import TIMESTAMPS, Costs
from rheo_kernels.types import Selected
from rheo_sglang.cpu_offload.service import CpuService
from rheo_sglang.decode.cuda_attention import CudaAttention
from rheo_sglang.decode.heads import HeadShape

logger = logging.getLogger(__name__)

REPEATS = 9
AT_ONCE = 3
"""Steps, of other pages each, of which the last is timed: threads are as awake then as between two layers."""
PAGES_PER_HEAD = (8, 64)
"""Misses of a KV head in the two measurements that a line is drawn through."""
HITS_PER_HEAD = 512
NEVER = 1e30
FIRST_STEP = 1 << 24
"""Of the trials, so that their sequence numbers differ from those of a server that just started."""


ALL_ON_CPU = Costs(NEVER, 1.0, 0.0, 1.0, 1.0, 0.0)
ALL_FETCHED = Costs(0.0, 1.0, NEVER, 1.0, 1.0, 0.0)
HALF_AND_HALF = Costs(0.0, 1.0, 0.0, 1.0, 0.5, 0.0)


def only_cpu(costs: Costs) -> Costs:
    """Costs by which the CPU attends all misses."""
    return costs._replace(fetch_latency=NEVER)


class Trial:
    """One layer's attention over a number of hits and misses of every KV head, for one request, as a CUDA graph.

    Frames are not in the GPU's cache when it begins, as they are not after the layer before.

    Parameters
    ----------
    attention
        The kernels; its pools are read.
    service
        The CPU's side; idle.
    heads
        Heads of this rank.
    """

    def __init__(self, attention: CudaAttention, service: CpuService, heads: HeadShape) -> None:
        self.pools = attention.frames.shape[2], attention.host.shape[1]
        device, width = attention.frames.device, HITS_PER_HEAD + max(PAGES_PER_HEAD)
        self.selected = selected = Selected.allocate(1, heads.kv_heads, width, device)
        selected.valid.fill_(attention.page_size)
        selected.num_hits.zero_()
        selected.num_selected.zero_()
        offload = service.prepare(0, 1.0)
        self.offload = offload = offload._replace(
            step=torch.full((), FIRST_STEP, dtype=torch.int32, device=device),
            timings=torch.zeros_like(offload.timings),
            cost_scales=offload.cost_scales.clone(),
            load_quota=torch.zeros_like(offload.load_quota),
            costs=torch.tensor(ALL_FETCHED, dtype=torch.float32, device=device),
        )
        cpu_begin = torch.zeros((1, heads.kv_heads), dtype=torch.int32, device=device)
        workspace = attention.workspace(1, width)
        queries = (1, heads.kv_heads * heads.group, heads.dim)
        q = torch.randn(queries, device=device).to(attention.computed_in)
        out = torch.empty_like(q)
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        others = attention.frames.flatten()[-cache:]
        swept = torch.empty_like(others)

        def attend() -> None:
            self.offload.step.add_(1)
            selected.hits.random_(0, self.pools[0])
            selected.misses.random_(0, self.pools[1])
            swept.copy_(others)
            attention.attend(0, selected, q, 1.0, workspace, out, None, offload, cpu_begin)

        attention.send_queries(q, offload)
        attend()
        torch.cuda.synchronize(device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            attend()

    def time(self, hits: int, misses: int, way: Costs) -> float:
        """Median microseconds from the selection to the output, with at least 1 miss, partitioned by ``way``."""
        self.offload.costs.copy_(torch.tensor(way))
        self.selected.num_hits.fill_(hits)
        self.selected.num_selected.fill_(hits + misses)
        began, merged = TIMESTAMPS.index("began"), TIMESTAMPS.index("merged")
        times = []
        for _ in range(REPEATS):
            for _ in range(AT_ONCE):
                self.graph.replay()
            timings = self.offload.timings[0].tolist()
            times.append((timings[merged] - timings[began]) / 1e3)
        return statistics.median(times)


def measure_costs(attention: CudaAttention, service: CpuService, heads: HeadShape) -> Costs:
    """Time the attention kernel over misses that all go one way, all the other, and half and half.

    Parameters
    ----------
    attention, service, heads
        See `Trial`.
    """
    trial = Trial(attention, service, heads)
    few, many = (pages * heads.kv_heads for pages in PAGES_PER_HEAD)
    hits = (trial.time(HITS_PER_HEAD, 1, ALL_FETCHED) - trial.time(0, 1, ALL_FETCHED)) / (
        HITS_PER_HEAD * heads.kv_heads
    )
    lines = []
    for way in (ALL_FETCHED, ALL_ON_CPU):
        short, long = (trial.time(0, pages, way) for pages in PAGES_PER_HEAD)
        page = max((long - short) / (many - few), 1e-3)
        lines.append((max(short - page * few, 0.0), page))
    together = trial.time(0, PAGES_PER_HEAD[1], HALF_AND_HALF)
    slowdown = together / max(begin + page * many / 2 for begin, page in lines)
    costs = Costs(*lines[0], *lines[1], max(slowdown, 1.0), max(hits, 0.0))
    logger.info(
        "rheo: a layer's misses take %.1f us and %.3f us a page to fetch, %.1f us and %.3f us a page on the CPU, "
        "%.2f times as long both at once; hits %.4f us a page",
        *costs,
    )
    return costs
