"""append, summarise_tails: one new token per request into its tail page's frames, and into the page's summary."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.eight_bits import quantise
from rheo_kernels.types import UNSCALED, KVScales
from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_kernels.types.summary import PageSummary, SummaryKernels


def append(
    k: torch.Tensor,
    v: torch.Tensor,
    tail_pages: torch.Tensor,
    offsets: torch.Tensor,
    page_table: torch.Tensor,
    frames: torch.Tensor,
    summary: PageSummary,
    summaries: torch.Tensor,
    page_size: int,
    scales: KVScales = UNSCALED,
) -> None:
    """Store one token per request in its resident tail page, and fold its key into the page's summary where that is all
    that it takes; `summarise_tails` does it for other summaries.

    Parameters
    ----------
    k, v
        New keys and values, ``[B, H, D]``, contiguous in ``D``; KV dtype, or any floating one where that is of 8 bits.
    tail_pages
        Logical page that receives the token, ``[B]``, int32; 0 marks a padded row, which is skipped.
    offsets
        Position inside the tail page, ``[B]``, int32; 0 restarts the page's summary.
    page_table
        One layer's page table, ``[H, N]``, int32. A tail page without a frame is skipped.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.
    summary
        Kind of the summaries.
    summaries
        One layer's summaries, ``[H, N, R, W]``; written.
    page_size
        Tokens per page.
    scales
        Of 8 bits.

    Notes
    -----
    Moves ``4 * B * H * D`` elements, and the rows of a summary that folds single tokens twice; bound by latency.
    """
    batch, heads, dim = k.shape
    _append[(batch, heads)](
        k,
        v,
        tail_pages,
        offsets,
        page_table,
        frames,
        summaries,
        *scales.factors,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        page_table.stride(0),
        frames.stride(0),
        frames.stride(1),
        summaries.stride(0),
        summaries.stride(1),
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        PAGE_SIZE=page_size,
        QUANTISE=frames.dtype == EIGHT_BITS,
        FOLD_TOKEN=_kernels(summary).fold_token,
        num_warps=1,
    )


def summarise_tails(
    tail_pages: torch.Tensor,
    offsets: torch.Tensor,
    page_table: torch.Tensor,
    frames: torch.Tensor,
    summary: PageSummary,
    summaries: torch.Tensor,
    head_dim: int,
    page_size: int,
) -> None:
    """Summarise tail pages anew from their frames, up to the token that was appended last; nothing for a summary whose
    tokens `append` folds.

    Attention does not read what this writes, and the next step's scores are the first to: one launch serves all layers.

    Parameters
    ----------
    tail_pages, offsets, summary, page_size
        See `append`, after which this runs.
    page_table, frames, summaries
        See `append`; a row is a KV head, of one layer or of each.
    head_dim
        ``D``.

    Notes
    -----
    Reads the tokens of a page, ``2 * D * P`` elements at most, and writes one summary, per request and row. One
    layer is bound by latency: 17 us beside other kernels on an H200, which is why layers share a launch.
    """
    kernels = _kernels(summary)
    if kernels.fold_token is not None:
        return
    _summarise_tails[(tail_pages.shape[0], page_table.shape[0])](
        tail_pages,
        offsets,
        page_table,
        frames,
        summaries,
        page_table.stride(0),
        frames.stride(0),
        frames.stride(1),
        summaries.stride(0),
        summaries.stride(1),
        DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        PAGE_SIZE=page_size,
        FOLD_CHUNK=kernels.fold_chunk,
        num_warps=4,
    )


def _kernels(summary: PageSummary) -> SummaryKernels:
    assert summary.kernels is not None, "a summary without kernels was not refused at start"
    return summary.kernels


@triton.jit
def _append(
    k,
    v,
    tail_pages,
    offsets,
    page_table,
    frames,
    summaries,
    factor_k,
    factor_v,
    stride_kb,
    stride_kh,
    stride_vb,
    stride_vh,
    stride_th,
    stride_fh,
    stride_ff,
    stride_mh,
    stride_mn,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    QUANTISE: tl.constexpr,
    FOLD_TOKEN: tl.constexpr,
):
    request = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    page = tl.load(tail_pages + request).to(tl.int64)
    if page > 0:
        frame = tl.load(page_table + head * stride_th + page).to(tl.int64)
        if frame >= 0:
            offset = tl.load(offsets + request)
            d = tl.arange(0, BLOCK_D)
            inside = d < DIM
            key = tl.load(k + request * stride_kb + head * stride_kh + d, mask=inside)
            value = tl.load(v + request * stride_vb + head * stride_vh + d, mask=inside)
            if QUANTISE:
                key = quantise(key, factor_k)
                value = quantise(value, factor_v)
            block = frames + head * stride_fh + frame * stride_ff
            tl.store(block + d * PAGE_SIZE + offset, key, mask=inside)
            tl.store(block + (PAGE_SIZE + offset) * DIM + d, value, mask=inside)
            if FOLD_TOKEN is not None:
                rows = summaries + head * stride_mh + page * stride_mn
                FOLD_TOKEN(rows, key, offset == 0, DIM, BLOCK_D)


@triton.jit
def _summarise_tails(
    tail_pages,
    offsets,
    page_table,
    frames,
    summaries,
    stride_th,
    stride_fh,
    stride_ff,
    stride_mh,
    stride_mn,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    FOLD_CHUNK: tl.constexpr,
):
    request = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    page = tl.load(tail_pages + request).to(tl.int64)
    if page > 0:
        frame = tl.load(page_table + head * stride_th + page).to(tl.int64)
        if frame >= 0:
            offset = tl.load(offsets + request)
            d = tl.arange(0, BLOCK_D)
            i = tl.arange(0, PAGE_SIZE)
            inside, held = d < DIM, i <= offset
            block = frames + head * stride_fh + frame * stride_ff
            keys = tl.load(
                block + d[:, None] * PAGE_SIZE + i[None, :], mask=inside[:, None] & held[None, :], other=0.0
            )
            stored = block + (PAGE_SIZE + i[:, None]) * DIM + d[None, :]
            values = tl.load(stored, mask=held[:, None] & inside[None, :], other=0.0)
            rows = summaries + head * stride_mh + page * stride_mn
            FOLD_CHUNK(rows, keys, values, held, offset + 1, DIM, BLOCK_D, PAGE_SIZE)
