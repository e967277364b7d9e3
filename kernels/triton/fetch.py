"""fetch: decode attention that reads missed pages from host memory and stores them into their new frames."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.attend import STAGES, WARPS
from rheo_kernels.triton.partial import (
    LOG2_E,
    Partials,
    accumulate,
    pages_per_tile,
    store_partial,
)

LOADERS = 128
"""Programs that fetch: enough reads in flight to fill PCIe, few enough to leave the GPU to the hits."""


def fetch_splits(pairs: int) -> int:
    """Into how many programs to split each of ``pairs`` lists of misses."""
    return max(LOADERS // pairs, 1)


def attend_fetch(
    q: torch.Tensor,
    frames: torch.Tensor,
    host: torch.Tensor,
    misses: torch.Tensor,
    valid: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    page_table: torch.Tensor,
    scale: float,
    page_size: int,
    partials: Partials | None = None,
) -> Partials:
    """Attend missed pages where they are, in host memory, and fill the frames that they were admitted to.

    Runs after `admit`, beside `attend` over the hits: a missed page that has a frame by now is stored into it in
    the same pass that attends it.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``; the dtype of ``frames``.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.
    host
        One layer's host pages, ``[N, H, 2, D * P]``, pinned.
    misses, valid
        Missed pages and their tokens, ``[B, H, S]``, int32, contiguous; see `Selected`.
    first, last
        Columns that hold the misses, ``[B, H]``, int32, contiguous.
    page_table
        One layer's page table after admission, ``[H, N]``, int32.
    scale
        Softmax scale.
    page_size
        Tokens per page.
    partials
        Result buffers for any number of splits; for `fetch_splits` of them when not given.

    Returns
    -------
    Partials
        One per split of every list, to be merged; ``(0, -inf)`` where nothing was missed.

    Notes
    -----
    Tiles are dealt to the splits in turn. Reads ``2 * D * P`` elements a miss over PCIe, which bounds it, and writes
    as many per admitted page. Requests that share an admitted page all write the same data to its frame.
    """
    batch, queries, dim = q.shape
    heads = frames.shape[0]
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
        frames,
        host,
        misses,
        valid,
        first,
        last,
        page_table,
        partials.out,
        partials.lse,
        scale,
        splits,
        misses.shape[2],
        heads,
        q.stride(0),
        q.stride(1),
        frames.stride(0),
        frames.stride(1),
        host.stride(0),
        host.stride(1),
        page_table.stride(0),
        DIM=dim,
        BLOCK_D=block_d,
        GROUP=group,
        BLOCK_G=block_g,
        PAGE_SIZE=page_size,
        TILE=pages_per_tile(block_d, page_size) * page_size,
        STAGES=STAGES,
        num_warps=WARPS,
    )
    return partials


@triton.jit(do_not_specialize=["splits"])
def _attend_fetch(
    q,
    frames,
    host,
    misses,
    valid,
    first,
    last,
    page_table,
    split_out,
    split_lse,
    scale,
    splits,
    width,
    heads,
    stride_qb,
    stride_qh,
    stride_fh,
    stride_ff,
    stride_hn,
    stride_hh,
    stride_th,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
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
    target_block = frames + head * stride_fh
    table = page_table + head * stride_th
    row = pair * width + begin

    top = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, BLOCK_D], tl.float32)
    for tile in tl.range(split, tiles, splits, num_stages=STAGES):
        start = tile * tile_pages
        source = tl.full([TILE], 0, tl.int32)
        target = tl.full([TILE], -1, tl.int32)
        tokens = tl.full([TILE], 0, tl.int32)
        for slot in tl.static_range(tile_pages):
            listed = start + slot < count
            column = row + start + slot
            mine = token // PAGE_SIZE == slot
            page = tl.load(misses + column, mask=listed, other=0)
            source = tl.where(mine, page, source)
            target = tl.where(mine, tl.load(table + page, mask=listed, other=-1), target)
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
        target = tl.max_constancy(target, [PAGE_SIZE])
        filled = target.to(tl.int64) * stride_ff
        fresh = target >= 0
        tl.store(target_block + key_at + filled[None, :], key, mask=fresh[None, :] & inside[:, None])
        tl.store(target_block + value_at + filled[:, None], value, mask=fresh[:, None] & inside[None, :])
        value = tl.where(live[:, None], value, 0.0)
        top, total, mixed = accumulate(query, key, value, live, scale * LOG2_E, top, total, mixed)
    store_partial(top, total, mixed, pair * splits + split, split_out, split_lse, DIM, BLOCK_D, GROUP)
