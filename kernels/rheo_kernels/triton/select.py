"""select: sink, window and the best-scored rest of each request's pages, per KV head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.keys import NO_KEY, find_threshold, to_keys
from rheo_kernels.triton.launch import row_block, row_warps


def select(
    scores: torch.Tensor,
    num_pages: torch.Tensor,
    budget: torch.Tensor,
    sink_pages: int,
    window_pages: int,
    width: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Choose at most ``budget`` pages per request and KV head.

    The first ``sink_pages`` and the last ``window_pages`` (at least the tail page) are always selected, even
    where they exceed the budget; the rest of the budget goes to the highest scores. The selection is exact;
    of pages that tie at the threshold the first are taken.

    Parameters
    ----------
    scores
        Page scores, ``[B, H, M]``, float32.
    num_pages
        Pages of each request, ``[B]``, int32.
    budget
        Pages each request and KV head may select, ``[B, H]``, int32.
    sink_pages, window_pages
        Always-selected pages at the start and at the end.
    width
        ``S``: columns of the result, no smaller than any request's selection.
    out
        Result buffer, ``[B, H, S]``, int32, contiguous.

    Returns
    -------
    torch.Tensor
        Indices into the request's page list, ``[B, H, S]``, int32, ascending (the reference lists the same
        set best first), then ``-1``.

    Notes
    -----
    One program per request and KV head keeps the row's scores in registers and searches the threshold
    there, so it moves ``4 M + 4 S`` bytes a row and is bound by the latency of about ten block-wide sums.
    """
    batch, heads, columns = scores.shape
    if out is None:
        out = torch.empty((batch, heads, width), dtype=torch.int32, device=scores.device)
    block = row_block(columns)
    _select[(batch, heads)](
        scores,
        num_pages,
        budget,
        out,
        columns,
        width,
        sink_pages,
        max(window_pages, 1),
        scores.stride(0),
        scores.stride(1),
        budget.stride(0),
        budget.stride(1),
        BLOCK_M=block,
        BLOCK_S=triton.next_power_of_2(width),
        num_warps=row_warps(block),
    )
    return out


@triton.jit
def choose(scores, position, pages, budget, width, sink_pages, window_pages):
    """Mark the selected pages of one request and KV head.

    Parameters
    ----------
    scores, position
        The row's scores (float32) and their indices ``0, 1, ...`` (int32).
    pages, budget
        Pages of the request, and how many of them may be selected; scalars, int32.
    width
        Most pages that may be selected at all.
    sink_pages, window_pages
        Always-selected pages; at least the tail page.

    Returns
    -------
    tuple
        One bool per score, and how many are marked (int32).
    """
    listed = position < pages
    forced = listed & ((position < sink_pages) | (position >= pages - window_pages))
    num_forced = tl.minimum(sink_pages + window_pages, pages)
    present = pages - num_forced
    wanted = tl.minimum(tl.minimum(budget, width) - num_forced, present)
    chosen = forced
    if wanted > 0:
        free = listed & (forced == 0)
        keys = tl.where(free, to_keys(scores), NO_KEY)
        lowest = tl.min(tl.where(free, keys, 0x7FFFFFFF), 0)
        threshold, reached = find_threshold(keys, lowest, tl.max(keys, 0), present, wanted)
        best = keys >= threshold
        if reached > wanted:
            tied = keys == threshold
            ties = tl.sum(tied.to(tl.int32), 0) - (reached - wanted)
            best = (keys > threshold) | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= ties))
        chosen = forced | best
    return chosen, num_forced + tl.maximum(wanted, 0)


@triton.jit
def _select(
    scores,
    num_pages,
    budget,
    out,
    columns,
    width,
    sink_pages,
    window_pages,
    stride_sb,
    stride_sh,
    stride_bb,
    stride_bh,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.arange(0, BLOCK_M)
    pages = tl.minimum(tl.load(num_pages + request), columns)
    row = tl.load(
        scores + request * stride_sb + head * stride_sh + position, mask=position < columns, other=0.0
    )
    allowed = tl.load(budget + request * stride_bb + head * stride_bh)
    chosen, count = choose(row, position, pages, allowed, width, sink_pages, window_pages)
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    target = out + (request * tl.num_programs(1) + head) * width
    tl.store(target + place, position, mask=chosen & (place < width))
    column = tl.arange(0, BLOCK_S)
    unused = (column >= count) & (column < width)
    tl.store(target + column, tl.full([BLOCK_S], -1, tl.int32), mask=unused)
