"""costs: what a miss takes to fetch and to attend on the CPU, measured with the kernel that does both."""

from __future__ import annotations

import logging
import statistics

import torch

from rheo_kernels.cuda.attend import Costs
from rheo_kernels.triton import Selected
from rheo_sglang.cuda.attention import CudaAttention
from rheo_sglang.cuda.heads import HeadShape
from rheo_sglang.split.service import CpuService

logger = logging.getLogger(__name__)

REPEATS = 9
PAGES_PER_HEAD = (8, 64)
"""Misses of a KV head in the two measurements that a line is drawn through."""
NEVER = 1e30
FIRST_STEP = 1 << 24
"""Rings are told apart by their step: these are not those of a server that just started."""


ALL_ON_CPU = Costs(NEVER, 1.0, 0.0, 1.0, 1.0)
ALL_FETCHED = Costs(0.0, 1.0, NEVER, 1.0, 1.0)
HALF_AND_HALF = Costs(0.0, 1.0, 0.0, 1.0, 0.5)


def measure_costs(attention: CudaAttention, service: CpuService, heads: HeadShape) -> Costs:
    """Time the attention kernel over misses that all go one way, all the other, and half and half.

    Parameters
    ----------
    attention
        The kernels; its pools are read.
    service
        The CPU's side; idle.
    heads
        Heads of this rank.
    """
    few, many = (pages * heads.kv_heads for pages in PAGES_PER_HEAD)
    nothing = _time(attention, service, heads, 0, ALL_FETCHED)
    lines = []
    for way in (ALL_FETCHED, ALL_ON_CPU):
        short, long = (_time(attention, service, heads, pages, way) for pages in PAGES_PER_HEAD)
        page = max((long - short) / (many - few), 1e-3)
        lines.append((max(short - nothing - page * few, 0.0), page))
    together = _time(attention, service, heads, PAGES_PER_HEAD[1], HALF_AND_HALF) - nothing
    slowdown = together / max(begin + page * many / 2 for begin, page in lines)
    costs = Costs(*lines[0], *lines[1], max(slowdown, 1.0))
    logger.info(
        "rheo: a layer's misses take %.1f us and %.3f us a page to fetch, %.1f us and %.3f us a page on the CPU, "
        "%.2f times as long both at once",
        *costs,
    )
    return costs


def _time(attention: CudaAttention, service: CpuService, heads: HeadShape, pages: int, way: Costs) -> float:
    """Median microseconds of one layer's attention over that many misses of every KV head, and no hits."""
    device = attention.frames.device
    width = max(PAGES_PER_HEAD)
    selected = Selected.allocate(1, heads.kv_heads, width, device)
    selected.num_hits.zero_()
    selected.num_selected.fill_(pages)
    selected.valid.fill_(attention.page_size)
    step = torch.full((), FIRST_STEP, dtype=torch.int32, device=device)
    share = service.prepare(0, 1.0)._replace(
        step=step, costs=torch.tensor(way, dtype=torch.float32, device=device)
    )
    cuts = torch.zeros((1, heads.kv_heads), dtype=torch.int32, device=device)
    workspace = attention.workspace(1, width)
    q = torch.randn((1, heads.kv_heads * heads.group, heads.dim), device=device).to(attention.frames.dtype)
    out = torch.empty_like(q)
    times = []
    for _ in range(REPEATS):
        selected.misses.random_(1, attention.host.shape[1])
        step += 1
        torch.cuda.synchronize(device)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        attention.attend(0, selected, q, 1.0, workspace, out, None, share, cuts)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)
