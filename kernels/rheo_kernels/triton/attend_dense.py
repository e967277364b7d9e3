"""attend_dense: decode attention over whole page lists, each page read from its frame or else from host memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.attend import STAGES, WARPS
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


def attend_dense(
    q: torch.Tensor,
    frames: torch.Tensor,
    host: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    page_table: torch.Tensor,
    scale: float,
    page_size: int,
    partials: Partials | None = None,
    missed_at: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
) -> Partials:
    """Attend one query token per request to all of its pages.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``; the dtype of ``frames``, or any where that is of 8 bits.
    frames
        One layer's frames, ``[H, F, 2, D * P]``.
    host
        One layer's host pages, ``[N, H, 2, D * P]``, pinned; read where a page has no frame.
    pages
        Page lists, ``[B, M]``, int32.
    seq_lens
        Tokens of each request, ``[B]``, int32; 0 for a padded row.
    page_table
        One layer's page table, ``[H, N]``, int32, negative = no frame.
    scale
        Softmax scale.
    page_size
        Tokens per page.
    partials
        Result buffers for any number of splits; for `num_splits` of them when not given.
    missed_at, step
        Scalars, int32: ``missed_at`` becomes ``step`` if any page had no frame.

    Returns
    -------
    Partials
        One per split of every list, to be merged; ``(0, -inf)`` for a padded row.

    Notes
    -----
    Reads ``2 * D * P`` elements and 8 bytes of tables per page; memory bound for groups of up to 16.
    """
    batch, queries, dim = q.shape
    heads = frames.shape[0]
    group = queries // heads
    pairs = batch * heads
    splits = num_splits(pairs, pages.shape[1])
    if partials is None:
        partials = Partials.allocate(pairs, group, dim, splits, q.device)
    splits = partials.splits
    block_d = triton.next_power_of_2(dim)
    block_g = triton.next_power_of_2(group)
    _attend_dense[(splits, pairs)](
        q,
        frames,
        host,
        pages,
        seq_lens,
        page_table,
        partials.out,
        partials.lse,
        missed_at,
        step,
        scale,
        splits,
        heads,
        q.stride(0),
        q.stride(1),
        frames.stride(0),
        frames.stride(1),
        host.stride(0),
        host.stride(1),
        pages.stride(0),
        page_table.stride(0),
        DIM=dim,
        BLOCK_D=block_d,
        GROUP=group,
        BLOCK_G=block_g,
        PAGE_SIZE=page_size,
        ELEMENT_BYTES=frames.element_size(),
        TILE=pages_per_tile(block_d, page_size) * page_size,
        LOOKUP=max(lookup_block(pages.shape[1], splits), pages_per_tile(block_d, page_size)),
        STAGES=STAGES,
        NOTE=missed_at is not None,
        num_warps=WARPS,
    )
    return partials


@triton.jit(do_not_specialize=["splits"])
def _attend_dense(
    q,
    frames,
    host,
    pages,
    seq_lens,
    page_table,
    split_out,
    split_lse,
    missed_at,
    step,
    scale,
    splits,
    heads,
    stride_qb,
    stride_qh,
    stride_fh,
    stride_ff,
    stride_hn,
    stride_hh,
    stride_pb,
    stride_th,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ELEMENT_BYTES: tl.constexpr,
    TILE: tl.constexpr,
    LOOKUP: tl.constexpr,
    STAGES: tl.constexpr,
    NOTE: tl.constexpr,
):
    split = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    request = pair // heads
    head = pair % heads
    tile_pages: tl.constexpr = TILE // PAGE_SIZE
    length = tl.load(seq_lens + request)
    count = tl.cdiv(length, PAGE_SIZE)
    pages_per_split = tl.cdiv(tl.cdiv(count, tile_pages), splits) * tile_pages
    begin = split * pages_per_split
    end = tl.minimum(begin + pages_per_split, count)

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
    head_frames = frames + head * stride_fh
    to_host = ((host + head * stride_hh).to(tl.int64) - head_frames.to(tl.int64)) // ELEMENT_BYTES
    to_host = tl.multiple_of(to_host, 8)
    keys = head_frames + (d * PAGE_SIZE)[:, None] + offset[None, :]
    values = head_frames + (DIM * PAGE_SIZE) + (offset * DIM)[:, None] + d[None, :]
    table = page_table + head * stride_th
    listed_pages = pages + request * stride_pb

    top = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, BLOCK_D], tl.float32)
    missed = 0
    place = tl.arange(0, LOOKUP)
    for chunk in range(begin, end, LOOKUP):
        listed = chunk + place < end
        page = tl.load(listed_pages + chunk + place, mask=listed, other=0)
        frame = tl.load(table + page, mask=listed, other=0)
        missed += tl.sum((frame < 0).to(tl.int32), 0)
        in_host = to_host + page.to(tl.int64) * stride_hn
        source_here = tl.where(frame >= 0, frame.to(tl.int64) * stride_ff, in_host)
        for start in tl.range(0, tl.minimum(end - chunk, LOOKUP), tile_pages, num_stages=STAGES):
            if tile_pages == 1:
                source = tl.zeros([TILE], tl.int64) + pick(source_here, place, start)
            else:
                source = tl.zeros([TILE], tl.int64)
                for slot in tl.static_range(tile_pages):
                    mine = token // PAGE_SIZE == slot
                    source = tl.where(mine, pick(source_here, place, start + slot), source)
                source = tl.max_constancy(source, [PAGE_SIZE])
            source = tl.multiple_of(source, 8)
            first = chunk + start
            live = (first + token // PAGE_SIZE < end) & (first * PAGE_SIZE + token < length)
            key = tl.load(keys + source[None, :], mask=live[None, :] & inside[:, None], other=0.0)
            value = tl.load(values + source[:, None], mask=live[:, None] & inside[None, :], other=0.0)
            key, value = key.to(query.dtype), value.to(query.dtype)
            top, total, mixed = accumulate(query, key, value, live, scale * LOG2_E, top, total, mixed)
    if NOTE:  # noqa: SIM102 - a constant, then a value of the GPU's
        if missed > 0:
            tl.store(missed_at, tl.load(step))
    store_partial(top, total, mixed, pair * splits + split, split_out, split_lse, DIM, BLOCK_D, GROUP)
