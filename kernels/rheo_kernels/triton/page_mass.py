"""page_mass: how much attention a chunk's last tokens pay to each page."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.dot import dot
from rheo_kernels.triton.partial import LOG2_E, PROGRAMS

TILE = 64
"""Tokens of K per step; a multiple of the page size."""
MAX_ROWS = 64
"""Query rows of one program."""
SUMMED_ROWS = 16
SUMMED_PAGES = 64
SUMMED_SPLITS = 32


def page_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_keys: torch.Tensor,
    scale: float,
    page_size: int,
    last: int,
    columns: int,
) -> torch.Tensor:
    """Attention of each request's last tokens, summed over pages, averaged over the tokens and the GQA group.

    Parameters
    ----------
    q
        Queries of all chunks, one after the other, ``[T, Hq, D]``, the dtype of ``k``, contiguous in ``D``.
    k
        Keys of all requests, each from its first token to the end of its chunk, ``[Y, H, D]``, contiguous in
        ``D``.
    cu_queries, cu_keys
        Where each request's chunk and keys begin, and where the last ones end, ``[B + 1]``, int32. A request's
        last query and last key are the same token; attention is causal.
    scale
        Softmax scale.
    page_size
        Tokens per page; a request's first key begins a page.
    last
        Tokens whose attention is counted, at most; a shorter chunk counts whole. A power of two.
    columns
        ``M``: pages of the longest request, or more.

    Returns
    -------
    torch.Tensor
        ``[B, H, M]``, float32; sums to 1 over a request's pages, ``-inf`` past its last page.

    Notes
    -----
    K is read once, for all query rows of a KV head (``G * last``, `MAX_ROWS` at a time): the first kernel leaves
    the LSE of every page and row, and of every program's span of pages; the second turns them into
    probabilities and sums them over the rows. Between them lie ``4 * H * G * last / P`` bytes per token.
    """
    batch = cu_queries.shape[0] - 1
    heads, dim = k.shape[1:]
    group = q.shape[1] // heads
    pairs, rows = batch * heads, group * last
    block_r = min(max(triton.next_power_of_2(rows), 16), MAX_ROWS)
    row_blocks = triton.cdiv(rows, block_r)
    tile_pages = TILE // page_size
    wanted = triton.cdiv(PROGRAMS, pairs * row_blocks)
    span = triton.cdiv(triton.cdiv(columns, wanted), tile_pages) * tile_pages
    splits = triton.cdiv(columns, span)
    width = k.shape[0] // page_size + batch
    page_lse = torch.empty((heads, rows, width), dtype=torch.float32, device=q.device)
    split_lse = torch.empty((pairs, rows, splits), dtype=torch.float32, device=q.device)
    mass = torch.empty((batch, heads, columns), dtype=torch.float32, device=q.device)
    _page_lse[(splits, pairs, row_blocks)](
        q,
        k,
        cu_queries,
        cu_keys,
        page_lse,
        split_lse,
        scale,
        span,
        splits,
        width,
        heads,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        ROWS=rows,
        BLOCK_R=block_r,
        LAST=last,
        PAGE_SIZE=page_size,
        TILE=TILE,
        num_warps=4,
    )
    _page_sums[(triton.cdiv(columns, SUMMED_PAGES), pairs)](
        page_lse,
        split_lse,
        cu_queries,
        cu_keys,
        mass,
        span,
        splits,
        width,
        columns,
        heads,
        ROWS=rows,
        LAST=last,
        PAGE_SIZE=page_size,
        BLOCK_R=SUMMED_ROWS,
        BLOCK_M=SUMMED_PAGES,
        BLOCK_S=SUMMED_SPLITS,
        num_warps=4,
    )
    return mass


@triton.jit
def _first_page(cu_keys, request, PAGE_SIZE: tl.constexpr):
    """First column of ``page_lse`` that is the request's: requests follow each other without overlap."""
    return tl.load(cu_keys + request) // PAGE_SIZE + request


@triton.jit(do_not_specialize=["span", "splits", "width"])
def _page_lse(
    q,
    k,
    cu_queries,
    cu_keys,
    page_lse,
    split_lse,
    scale,
    span,
    splits,
    width,
    heads,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    LAST: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    split = tl.program_id(0)
    pair = tl.program_id(1)
    request = pair // heads
    head = (pair % heads).to(tl.int64)
    first_key = tl.load(cu_keys + request)
    total = tl.load(cu_keys + request + 1) - first_key
    begin = split * span * PAGE_SIZE
    if begin < total:
        end = tl.minimum(begin + span * PAGE_SIZE, total)
        row = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
        back = LAST - row % LAST
        query_end = tl.load(cu_queries + request + 1)
        real = (row < ROWS) & (query_end - back >= tl.load(cu_queries + request))
        d = tl.arange(0, BLOCK_D)
        inside = d < DIM
        token = (query_end - back).to(tl.int64)
        query = tl.load(
            q
            + token[:, None] * stride_qt
            + (head * (ROWS // LAST) + row // LAST)[:, None] * stride_qh
            + d[None, :],
            mask=real[:, None] & inside[None, :],
            other=0.0,
        )
        keys = k + first_key.to(tl.int64) * stride_kt + head * stride_kh + d[None, :]
        tile_pages: tl.constexpr = TILE // PAGE_SIZE
        page = tl.arange(0, tile_pages)
        pages = tl.cdiv(total, PAGE_SIZE)
        out = page_lse + (head * ROWS + row) * width + _first_page(cu_keys, request, PAGE_SIZE)
        top = tl.full([BLOCK_R], float("-inf"), tl.float32)
        mass = tl.zeros([BLOCK_R], tl.float32)
        for start in range(begin, end, TILE):
            position = start + tl.arange(0, TILE)
            key = tl.load(
                keys + position.to(tl.int64)[:, None] * stride_kt,
                mask=(position < total)[:, None] & inside[None, :],
                other=0.0,
            )
            logits = dot(query, tl.trans(key), tl.zeros([BLOCK_R, TILE], tl.float32)) * (scale * LOG2_E)
            seen = real[:, None] & (position[None, :] <= (total - back)[:, None])
            logits = tl.where(seen, logits, float("-inf"))
            logits = tl.reshape(logits, [BLOCK_R, tile_pages, PAGE_SIZE])
            page_top = tl.max(logits, 2)
            shift = tl.where(page_top == float("-inf"), 0.0, page_top)
            lse = page_top + tl.log2(tl.maximum(tl.sum(tl.exp2(logits - shift[:, :, None]), 2), 1.0))
            column = start // PAGE_SIZE + page
            tl.store(
                out[:, None] + column[None, :],
                lse,
                mask=(row < ROWS)[:, None] & (column < pages)[None, :],
            )
            higher = tl.maximum(top, tl.max(lse, 1))
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            mass = mass * tl.exp2(top - shift) + tl.sum(tl.exp2(lse - shift[:, None]), 1)
            top = higher
        lse = tl.where(mass > 0, top + tl.log2(tl.where(mass > 0, mass, 1.0)), float("-inf"))
        tl.store(split_lse + (pair.to(tl.int64) * ROWS + row) * splits + split, lse, mask=row < ROWS)


@triton.jit(do_not_specialize=["span", "splits", "width", "columns"])
def _page_sums(
    page_lse,
    split_lse,
    cu_queries,
    cu_keys,
    mass,
    span,
    splits,
    width,
    columns,
    heads,
    ROWS: tl.constexpr,
    LAST: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    pair = tl.program_id(1)
    request = pair // heads
    head = (pair % heads).to(tl.int64)
    column = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    pages = tl.cdiv(tl.load(cu_keys + request + 1) - tl.load(cu_keys + request), PAGE_SIZE)
    used = tl.cdiv(pages, span)
    counted = tl.minimum(tl.load(cu_queries + request + 1) - tl.load(cu_queries + request), LAST)
    listed = column < pages
    first = _first_page(cu_keys, request, PAGE_SIZE)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, ROWS, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        real = (row < ROWS) & (row % LAST >= LAST - counted)
        top = tl.full([BLOCK_R], float("-inf"), tl.float32)
        whole = tl.zeros([BLOCK_R], tl.float32)
        for first_split in range(0, used, BLOCK_S):
            split = first_split + tl.arange(0, BLOCK_S)
            part = tl.load(
                split_lse + (pair.to(tl.int64) * ROWS + row)[:, None] * splits + split[None, :],
                mask=real[:, None] & (split < used)[None, :],
                other=float("-inf"),
            )
            higher = tl.maximum(top, tl.max(part, 1))
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            whole = whole * tl.exp2(top - shift) + tl.sum(tl.exp2(part - shift[:, None]), 1)
            top = higher
        lse = tl.where(real, top + tl.log2(tl.where(real, whole, 1.0)), 0.0)
        part = tl.load(
            page_lse + (head * ROWS + row)[:, None] * width + first + column[None, :],
            mask=real[:, None] & listed[None, :],
            other=float("-inf"),
        )
        total += tl.sum(tl.exp2(part - lse[:, None]), 0)
    result = tl.where(listed, total / (counted * (ROWS // LAST)), float("-inf"))
    tl.store(mass + pair.to(tl.int64) * columns + column, result, mask=column < columns)
