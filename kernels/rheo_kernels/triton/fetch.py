"""fetch: decode attention over missed pages in host memory, which also stages them on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.attend import STAGES, WARPS
from rheo_kernels.triton.partial import (
    LOG2_E,
    accumulate,
    pages_per_tile,
    store_partial,
)
from rheo_kernels.types import Partials

FETCHERS = 128
"""Programs that fetch: enough reads in flight to fill PCIe, few enough to leave the GPU to the hits."""


def fetch_splits(pairs: int) -> int:
    """Into how many programs to split each of ``pairs`` lists of misses."""
    return max(FETCHERS // pairs, 1)


def attend_fetch(
    q: torch.Tensor,
    host: torch.Tensor,
    misses: torch.Tensor,
    valid: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    scale: float,
    page_size: int,
    partials: Partials | None = None,
    staged: torch.Tensor | None = None,
) -> Partials:
    """Attend missed pages in host memory, and stage them on the device for `fill`.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``; the dtype of ``host``, or any where that is of 8 bits.
    host
        One layer's host pages, ``[N, H, 2, D * P]``, pinned.
    misses, valid
        Missed pages and their tokens, ``[B, H, S]``, int32, contiguous; see `Selected`.
    first, last
        Columns that hold the misses, ``[B, H]``, int32, contiguous.
    scale
        Softmax scale.
    page_size
        Tokens per page.
    partials
        Result buffers for any number of splits; for `fetch_splits` of them when not given.
    staged
        ``[B * H, room, 2, D * P]``, contiguous: the first ``room`` missed pages of each list are stored here in the
        same pass, for `fill`.

    Returns
    -------
    Partials
        One per split of every list, to be merged; ``(0, -inf)`` where nothing was missed.

    Notes
    -----
    Tiles are dealt to the splits in turn. Reads ``2 * D * P`` elements a miss over PCIe, which bounds it, and writes
    as many.
    """
    batch, queries, dim = q.shape
    heads = host.shape[1]
    group = queries // heads
    pairs = batch * heads
    splits = fetch_splits(pairs)
    if partials is None:
        partials = Partials.allocate(pairs, group, dim, splits, q.device)
    splits = partials.splits
    block_d = triton.next_power_of_2(dim)
    block_g = triton.next_power_of_2(group)
    _attend_fetch[(splits, pairs)](
        q,
        host,
        misses,
        valid,
        first,
        last,
        staged,
        partials.out,
        partials.lse,
        scale,
        splits,
        misses.shape[2],
        heads,
        q.stride(0),
        q.stride(1),
        host.stride(0),
        host.stride(1),
        0 if staged is None else staged.shape[1],
        DIM=dim,
        BLOCK_D=block_d,
        GROUP=group,
        BLOCK_G=block_g,
        PAGE_SIZE=page_size,
        TILE=pages_per_tile(block_d, page_size) * page_size,
        STAGES=STAGES,
        KEEP=staged is not None,
        num_warps=WARPS,
    )
    return partials


@triton.jit(do_not_specialize=["splits"])
def _attend_fetch(
    q,
    host,
    misses,
    valid,
    first,
    last,
    staged,
    split_out,
    split_lse,
    scale,
    splits,
    width,
    heads,
    stride_qb,
    stride_qh,
    stride_hn,
    stride_hh,
    room,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    KEEP: tl.constexpr,
):
    split = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    request = pair // heads
    head = pair % heads
    tile_pages: tl.constexpr = TILE // PAGE_SIZE
    begin = tl.load(first + pair)
    count = tl.load(last + pair) - begin
    tiles = tl.cdiv(count, tile_pages)
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
    key_at = (d * PAGE_SIZE)[:, None] + offset[None, :]
    value_at = (DIM * PAGE_SIZE) + (offset * DIM)[:, None] + d[None, :]
    source_block = host + head * stride_hh
    kept = staged + pair * room * (2 * DIM * PAGE_SIZE) if KEEP else host
    row = pair * width + begin

    top = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, BLOCK_D], tl.float32)
    for tile in tl.range(split, tiles, splits, num_stages=STAGES):
        start = tile * tile_pages
        source = tl.full([TILE], 0, tl.int32)
        tokens = tl.full([TILE], 0, tl.int32)
        for slot in tl.static_range(tile_pages):
            listed = start + slot < count
            column = row + start + slot
            mine = token // PAGE_SIZE == slot
            page = tl.load(misses + column, mask=listed, other=0)
            source = tl.where(mine, page, source)
            tokens = tl.where(mine, tl.load(valid + column, mask=listed, other=0), tokens)
        present = start + token // PAGE_SIZE < count
        live = present & (offset < tokens)
        source = tl.max_constancy(source, [PAGE_SIZE]).to(tl.int64) * stride_hn
        key = tl.load(
            source_block + key_at + source[None, :], mask=present[None, :] & inside[:, None], other=0.0
        )
        value = tl.load(
            source_block + value_at + source[:, None], mask=present[:, None] & inside[None, :], other=0.0
        )
        if KEEP:
            place = (start + token // PAGE_SIZE).to(tl.int64)
            fits = present & (place < room)
            place *= 2 * DIM * PAGE_SIZE
            tl.store(kept + key_at + place[None, :], key, mask=fits[None, :] & inside[:, None])
            tl.store(kept + value_at + place[:, None], value, mask=fits[:, None] & inside[None, :])
        key = key.to(query.dtype)
        value = tl.where(live[:, None], value.to(query.dtype), 0.0)
        top, total, mixed = accumulate(query, key, value, live, scale * LOG2_E, top, total, mixed)
    store_partial(top, total, mixed, pair * splits + split, split_out, split_lse, DIM, BLOCK_D, GROUP)
