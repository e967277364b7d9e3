"""allow: pages that each request and KV head may select in this step, by a budget rule and by a floor of coverage."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.cover import cover
from rheo_kernels.triton.launch import row_block, row_warps
from rheo_kernels.types import Growth


def allow(
    rule: Any,
    scores: torch.Tensor,
    num_pages: torch.Tensor,
    budget: torch.Tensor,
    limit: torch.Tensor,
    floor: torch.Tensor,
    sink_pages: int,
    window_pages: int,
    growth: Growth | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """The pages that a rule wants and those that a floor needs, whichever are more, between budget and limit.

    Parameters
    ----------
    rule
        Device function ``(scores, num_pages, budget, limit) -> int32`` of one request and KV head: how many pages
        besides those that are always selected, whose scores are ``-inf``. None wants none.
    scores
        ``[B, H, M]``, float32, ``-inf`` past the last page; with a floor, logarithms of shares of the attention.
    num_pages
        ``[B]``, int32.
    budget, limit
        Pages that every KV head may select, and the most to which a rule or floor may raise that, ``[B]``, int32.
    floor
        Share of the estimated attention that selected pages hold, ``[B]``, float32; at most 0 for none.
    sink_pages, window_pages
        Always-selected pages; at least the tail page.
    growth
        Counters; what is allowed beyond the budget is added.
    out
        Result buffer, ``[B, H]``, int32.

    Notes
    -----
    One program per request and KV head; reads 4 bytes a page, keeps the row in registers, and is bound by latency: at
    4096 pages with a floor of 0.9, 5.6 us on an H200 at batches of 1 and of 8 with 8 KV heads, at 8192 pages 8.7 us.
    About 1 us of that is the launch; four passes over the row find the pages that the floor needs.

    The launch has no programmatic dependence: it begins when the kernel that wrote the scores has ended.
    `select_resolve`, which may be launched before this one ends, waits for its end before it reads a score or a budget.
    """
    batch, heads, columns = scores.shape
    block = row_block(columns)
    counted = (growth.samples, growth.pages, growth.slots) if growth is not None else (None, None, None)
    _allow[(batch, heads)](
        scores,
        num_pages,
        budget,
        limit,
        floor,
        out,
        *counted,
        columns,
        sink_pages,
        max(window_pages, 1),
        scores.stride(0),
        scores.stride(1),
        out.stride(0),
        0 if growth is None else growth.samples.stride(0),
        RULE=rule,
        BLOCK_M=block,
        num_warps=row_warps(block),
    )
    return out


@triton.jit
def _allow(
    scores,
    num_pages,
    budget,
    limit,
    floor,
    out,
    growth_samples,
    growth_pages,
    growth_slots,
    columns,
    sink_pages,
    window_pages,
    stride_sb,
    stride_sh,
    stride_ob,
    stride_gr,
    RULE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    count = tl.minimum(tl.load(num_pages + request), columns)
    least = tl.load(budget + request)
    most = tl.load(limit + request)
    share = tl.load(floor + request)
    position = tl.arange(0, BLOCK_M)
    free = (position >= sink_pages) & (position < count - window_pages)
    row = scores + request * stride_sb + head.to(tl.int64) * stride_sh
    known = tl.load(row + position, mask=free, other=float("-inf"))
    forced = tl.minimum(sink_pages + window_pages, count)
    wanted = cover(known, share)
    if RULE is not None:
        wanted = tl.maximum(wanted, RULE(known, count, least, most).to(tl.int32))
    allowed = tl.minimum(tl.maximum(wanted + forced, least), most)
    tl.store(out + request * stride_ob + head, allowed)
    if growth_samples is not None:
        grown = allowed - least
        if grown > 0:
            counter = tl.load(growth_slots + request) * stride_gr + head
            tl.atomic_add(growth_samples + counter, 1, sem="relaxed")
            tl.atomic_add(growth_pages + counter, grown.to(tl.int64), sem="relaxed")
