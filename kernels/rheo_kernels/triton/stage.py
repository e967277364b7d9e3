"""stage: pages of one layer, resident or not, gathered into contiguous K and V for dense attention."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.partial import pages_per_tile

STAGERS = 16
"""Programs that gather: enough reads in flight to fill PCIe, few enough to leave the GPU to dense attention."""
MAX_STAGES = 4
"""Software pipeline stages: a program has up to one tile of K and V less in flight."""
PIPELINE_BYTES = 2**17
"""Shared memory for them."""


def stage(
    host: torch.Tensor,
    frames: torch.Tensor,
    page_table: torch.Tensor,
    pages: torch.Tensor,
    tokens: torch.Tensor,
    rows: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    page_size: int,
    programs: int = STAGERS,
) -> None:
    """Copy the first tokens of pages into K and V, from each KV head's frame where there is one.

    Parameters
    ----------
    host
        One layer's host pages, ``[N, H, 2, D * P]``, pinned.
    frames
        One layer's frames, ``[H, F, 2, D * P]``.
    page_table
        One layer's page table, ``[H, N]``, int32.
    pages
        Logical pages, ``[X]``, int32.
    tokens
        Tokens to copy of each page, the first ones, ``[X]``, int32.
    rows
        Row of ``k`` and ``v`` that takes each page's first token, ``[X]``, int32.
    k, v
        Staged keys and values, ``[Y, H, D]``, the dtype to compute in, contiguous; written.
    page_size
        Tokens per page.
    programs
        Programs over all KV heads.

    Notes
    -----
    Reads ``2 * D * P`` elements per page and KV head, those of non-resident pages over PCIe in runs of ``2 * P``
    bytes and more that lie next to each other, 16 bytes a thread; K is transposed on the way through.
    """
    heads, dim = k.shape[1:]
    count = pages.shape[0]
    block_d = triton.next_power_of_2(dim)
    tile_pages = pages_per_tile(block_d, page_size)
    tile = tile_pages * page_size
    stages = min(max(PIPELINE_BYTES // (2 * tile * block_d * k.element_size()), 2), MAX_STAGES)
    _stage[(max(min(programs // heads, triton.cdiv(count, tile_pages)), 1), heads)](
        host,
        frames,
        page_table,
        pages,
        tokens,
        rows,
        k,
        v,
        count,
        host.stride(0),
        host.stride(1),
        frames.stride(0),
        frames.stride(1),
        page_table.stride(0),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        DIM=dim,
        BLOCK_D=block_d,
        PAGE_SIZE=page_size,
        ELEMENT_BYTES=host.element_size(),
        TILE=tile,
        STAGES=stages,
        num_warps=4 if block_d * tile <= 4096 else 8,
    )


@triton.jit(do_not_specialize=["count"])
def _stage(
    host,
    frames,
    page_table,
    pages,
    tokens,
    rows,
    k,
    v,
    count,
    stride_hn,
    stride_hh,
    stride_fh,
    stride_ff,
    stride_th,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ELEMENT_BYTES: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    tile_pages: tl.constexpr = TILE // PAGE_SIZE
    i = tl.arange(0, TILE)
    offset = i % PAGE_SIZE
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    head_host = host + head * stride_hh
    to_frames = ((frames + head * stride_fh).to(tl.int64) - head_host.to(tl.int64)) // ELEMENT_BYTES
    to_frames = tl.multiple_of(to_frames, 8)
    keys = head_host + (d * PAGE_SIZE)[:, None] + offset[None, :]
    values = head_host + (DIM * PAGE_SIZE) + (offset * DIM)[:, None] + d[None, :]
    table = page_table + head * stride_th
    staged_keys = k + head * stride_kh + d[:, None]
    staged_values = v + head * stride_vh + d[None, :]
    for tile in tl.range(tl.program_id(0), tl.cdiv(count, tile_pages), tl.num_programs(0), num_stages=STAGES):
        listed = tile * tile_pages + i // PAGE_SIZE
        present = listed < count
        page = tl.load(pages + listed, mask=present, other=0)
        frame = tl.load(table + page)
        live = offset < tl.load(tokens + listed, mask=present, other=0)
        row = (tl.load(rows + listed, mask=present, other=0) + offset).to(tl.int64)
        in_frame = to_frames + frame.to(tl.int64) * stride_ff
        source = tl.where(frame >= 0, in_frame, page.to(tl.int64) * stride_hn)
        source = tl.max_constancy(source, [PAGE_SIZE])
        key = tl.load(keys + source[None, :], mask=inside[:, None])
        value = tl.load(values + source[:, None], mask=inside[None, :])
        tl.store(staged_keys + row[None, :] * stride_kt, key, mask=live[None, :] & inside[:, None])
        tl.store(staged_values + row[:, None] * stride_vt, value, mask=live[:, None] & inside[None, :])
