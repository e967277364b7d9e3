"""tail: attention to the pages that a selection left out, from their summaries alone, as one more partial."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.dot import dot
from rheo_kernels.triton.partial import LOG2_E, PROGRAMS
from rheo_kernels.triton.subcentroids import code_bits, decode_scale
from rheo_kernels.types import Partials
from rheo_kernels.types.subcentroids import CENTRE_GROUPS, GROUPS, LEVELS, SubcentroidLayout

PAGES_PER_TILE = 32
"""Pages that one step of a program's loop reads: 96 registers a thread at ``D = 128``, with 64 pages 156."""
MOST_SPLITS = 64
"""What is worth merging: every split costs ``4 D`` bytes for each query head."""
TAIL_WARPS = 4


def tail_splits(pairs: int, width: int) -> int:
    """Into how many programs to split each of ``pairs`` page lists of up to ``width`` pages."""
    return max(min(triton.cdiv(PROGRAMS, pairs), triton.cdiv(width, PAGES_PER_TILE), MOST_SPLITS), 1)


def tail(
    lse: torch.Tensor,
    summaries: torch.Tensor,
    pages: torch.Tensor,
    layout: SubcentroidLayout,
    partials: Partials | None = None,
) -> Partials:
    """Attend the pages left out, each as if its tokens all had the page's mean V.

    Parameters
    ----------
    lse
        Estimates without those of selected pages (see `select_resolve`), ``[B, Hq, M]``, float32, contiguous.
    summaries
        One layer's summaries, ``[H, N, W]``, uint8, contiguous.
    pages
        Page lists, ``[B, M]``, int32; read where an estimate is above ``-inf``.
    layout
        Of the summaries.
    partials
        Result buffers for any number of splits; for `tail_splits` of them when not given.

    Returns
    -------
    Partials
        One per split of every list, to be merged with those of the selected pages; ``(0, -inf)`` where nothing is left
        out, so that a selection of all pages is attended as if there were no tail.

    Notes
    -----
    Reads ``D / 2 + 1`` bytes of every page left out, 4 for each page and query head, and writes ``4 D`` for each split
    and query head. Weights are rounded to bfloat16, and their sum is that of the rounded ones.
    """
    batch, width = pages.shape
    heads = summaries.shape[0]
    queries = lse.shape[1]
    group, dim, pairs = queries // heads, layout.head_dim, batch * heads
    if partials is None:
        partials = Partials.allocate(pairs, group, dim, tail_splits(pairs, width), lse.device)
    _tail[(partials.splits, pairs)](
        lse,
        summaries,
        pages,
        partials.out,
        partials.lse,
        partials.splits,
        width,
        heads,
        summaries.stride(0),
        pages.stride(0),
        WIDTH=layout.width,
        DIM=dim,
        HALF=dim // 2,
        BLOCK_H=triton.next_power_of_2(dim // 2),
        GROUP=group,
        BLOCK_G=max(triton.next_power_of_2(group), 16),
        BLOCK_M=PAGES_PER_TILE,
        SCALE=layout.scales_offset + GROUPS + CENTRE_GROUPS,
        VALUE=layout.value_offset,
        MIDDLE=LEVELS / 2,
        num_warps=TAIL_WARPS,
    )
    return partials


@triton.jit(do_not_specialize=["splits"])
def _tail(
    lse,
    summaries,
    pages,
    split_out,
    split_lse,
    splits,
    width,
    heads,
    stride_sh,
    stride_pb,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SCALE: tl.constexpr,
    VALUE: tl.constexpr,
    MIDDLE: tl.constexpr,
):
    split = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    request = pair // heads
    head = pair % heads
    per_split = tl.cdiv(tl.cdiv(width, BLOCK_M), splits) * BLOCK_M
    begin = split * per_split
    end = tl.minimum(begin + per_split, width)
    g = tl.arange(0, BLOCK_G)
    h = tl.arange(0, BLOCK_H)
    inside = h < HALF
    first = summaries + tl.multiple_of(head * stride_sh, 4)
    rows = lse + (pair * GROUP + g[:, None]) * width
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    mixed_low = tl.zeros([BLOCK_G, BLOCK_H], tl.float32)
    mixed_high = tl.zeros([BLOCK_G, BLOCK_H], tl.float32)
    for start in range(begin, end, BLOCK_M):
        position = start + tl.arange(0, BLOCK_M)
        listed = position < end
        x = tl.load(
            rows + position[None, :], mask=(g < GROUP)[:, None] & listed[None, :], other=float("-inf")
        )
        x *= LOG2_E
        left = tl.max(x, 0) > float("-inf")
        page = tl.load(pages + request * stride_pb + position, mask=left, other=0).to(tl.int64)
        base = first + page * WIDTH
        packed = tl.load(base[:, None] + VALUE + h[None, :], mask=left[:, None] & inside[None, :], other=0)
        unit = decode_scale(tl.load(base + SCALE, mask=left, other=0))[:, None]
        low = ((code_bits(packed, False) - MIDDLE) * unit).to(tl.bfloat16)
        high = ((code_bits(packed, True) - MIDDLE) * unit).to(tl.bfloat16)
        higher = tl.maximum(top, tl.max(x, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(x - shift[:, None]).to(tl.bfloat16)
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(weights.to(tl.float32), 1)
        mixed_low = dot(weights, low, mixed_low * fade[:, None])
        mixed_high = dot(weights, high, mixed_high * fade[:, None])
        top = higher
    part = pair * splits + split
    whole = tl.where(total > 0, total, 1.0)
    real = (g < GROUP)[:, None] & inside[None, :]
    row = split_out + part * (GROUP * DIM) + g[:, None] * DIM + h[None, :]
    tl.store(row, mixed_low / whole[:, None], mask=real)
    tl.store(row + HALF, mixed_high / whole[:, None], mask=real)
    result = tl.where(total > 0, top + tl.log2(whole), float("-inf"))
    tl.store(split_lse + part * GROUP + g, result, mask=g < GROUP)
