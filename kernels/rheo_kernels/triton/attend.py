"""attend: decode attention over per-head lists of pages, as a partial with its LSE."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.partial import (
    LOG2_E,
    accumulate,
    lookup_block,
    num_splits,
    pages_per_tile,
    pick,
    store_partial,
)
from rheo_kernels.types import Partials

STAGES = 3
"""Software pipeline stages: ``STAGES - 1`` tiles of K and V are in flight or in use."""
WARPS = 2


def attend(
    q: torch.Tensor,
    blocks: torch.Tensor,
    index: torch.Tensor,
    valid: torch.Tensor,
    scale: float,
    page_size: int,
    first: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
    partials: Partials | None = None,
) -> Partials:
    """Attend one query token per request to the listed pages of each KV head.

    Every list is split over programs, each of which reads K and V of its pages once for the whole GQA group; `merge`
    joins the splits. Lists of any length are split evenly, so no program waits for a long request.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``; the dtype of ``blocks``, or any where that is of 8 bits.
    blocks
        Page blocks ``[H, X, 2, D * P]`` (any strides over ``H`` and ``X``): frames, or host pages in mapped
        pinned memory.
    index
        Blocks to attend, ``[B, H, S]``, int32, -1 = none; contiguous.
    valid
        Tokens of each listed block to attend, ``[B, H, S]``, int32; contiguous.
    scale
        Softmax scale.
    page_size
        Tokens per page.
    first, last
        Range of columns of each list to look at, ``[B, H]``, int32, contiguous; the list's ends by default.
    partials
        Result buffers for any number of splits; for `num_splits` of them when not given.

    Returns
    -------
    Partials
        One per split of every list, to be merged; ``(0, -inf)`` where nothing is listed.

    Notes
    -----
    Reads ``2 * D * P`` elements and 8 bytes of lists per listed page; memory bound for groups of up to 16.
    """
    batch, queries, dim = q.shape
    heads = blocks.shape[0]
    width = index.shape[2]
    group = queries // heads
    pairs = batch * heads
    splits = num_splits(pairs, width)
    if partials is None:
        partials = Partials.allocate(pairs, group, dim, splits, q.device)
    splits = partials.splits
    block_d = triton.next_power_of_2(dim)
    block_g = triton.next_power_of_2(group)
    _attend[(splits, pairs)](
        q,
        blocks,
        index,
        valid,
        first,
        last,
        partials.out,
        partials.lse,
        scale,
        splits,
        width,
        heads,
        q.stride(0),
        q.stride(1),
        blocks.stride(0),
        blocks.stride(1),
        DIM=dim,
        BLOCK_D=block_d,
        GROUP=group,
        BLOCK_G=block_g,
        PAGE_SIZE=page_size,
        TILE=pages_per_tile(block_d, page_size) * page_size,
        LOOKUP=max(lookup_block(width, splits), pages_per_tile(block_d, page_size)),
        STAGES=STAGES,
        FIRST=first is not None,
        LAST=last is not None,
        num_warps=WARPS,
    )
    return partials


@triton.jit(do_not_specialize=["splits"])
def _attend(
    q,
    blocks,
    index,
    valid,
    first,
    last,
    split_out,
    split_lse,
    scale,
    splits,
    width,
    heads,
    stride_qb,
    stride_qh,
    stride_bh,
    stride_bx,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    LOOKUP: tl.constexpr,
    STAGES: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    split = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    request = pair // heads
    head = pair % heads
    begin = 0
    end = width
    if FIRST:
        begin = tl.load(first + pair)
    if LAST:
        end = tl.load(last + pair)
    tile_pages: tl.constexpr = TILE // PAGE_SIZE
    tiles = tl.cdiv(tl.maximum(end - begin, 0), tile_pages)
    pages_per_split = tl.cdiv(tiles, splits) * tile_pages
    begin += split * pages_per_split
    end = tl.minimum(begin + pages_per_split, end)

    rows: tl.constexpr = 16 if BLOCK_G < 16 else BLOCK_G
    g = tl.arange(0, rows)
    d = tl.arange(0, BLOCK_D)
    token = tl.arange(0, TILE)
    offset = token % PAGE_SIZE
    inside = d < DIM
    query = tl.load(
        q + request * stride_qb + (head * GROUP + g[:, None]) * stride_qh + d[None, :],
        mask=(g < GROUP)[:, None] & inside[None, :],
        other=0.0,
    )
    keys = blocks + head * stride_bh + (d * PAGE_SIZE)[:, None] + offset[None, :]
    values = blocks + head * stride_bh + (DIM * PAGE_SIZE) + (offset * DIM)[:, None] + d[None, :]
    listed_blocks = index + pair * width
    listed_valid = valid + pair * width

    top = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, BLOCK_D], tl.float32)
    place = tl.arange(0, LOOKUP)
    for chunk in range(begin, end, LOOKUP):
        listed = chunk + place < end
        blocks_here = tl.load(listed_blocks + chunk + place, mask=listed, other=-1)
        tokens_here = tl.load(listed_valid + chunk + place, mask=listed & (blocks_here >= 0), other=0)
        for start in tl.range(0, tl.minimum(end - chunk, LOOKUP), tile_pages, num_stages=STAGES):
            if tile_pages == 1:
                where = tl.zeros([TILE], tl.int64) + pick(blocks_here, place, start).to(tl.int64) * stride_bx
                tokens = tl.zeros([TILE], tl.int32) + pick(tokens_here, place, start)
            else:
                block = tl.zeros([TILE], tl.int32)
                tokens = tl.zeros([TILE], tl.int32)
                for slot in tl.static_range(tile_pages):
                    mine = token // PAGE_SIZE == slot
                    block = tl.where(mine, pick(blocks_here, place, start + slot), block)
                    tokens = tl.where(mine, pick(tokens_here, place, start + slot), tokens)
                where = tl.max_constancy(block, [PAGE_SIZE]).to(tl.int64) * stride_bx
            live = offset < tokens
            key = tl.load(keys + where[None, :], mask=live[None, :] & inside[:, None], other=0.0)
            value = tl.load(values + where[:, None], mask=live[:, None] & inside[None, :], other=0.0)
            key, value = key.to(query.dtype), value.to(query.dtype)
            top, total, mixed = accumulate(query, key, value, live, scale * LOG2_E, top, total, mixed)
    store_partial(top, total, mixed, pair * splits + split, split_out, split_lse, DIM, BLOCK_D, GROUP)
