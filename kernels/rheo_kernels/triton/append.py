"""append: one new token per request into its tail page's frames, and into the page's summary."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.types.summary import PageSummary


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
) -> None:
    """Store one token per request in its resident tail page and fold its key into the page's summary.

    Parameters
    ----------
    k, v
        New keys and values, ``[B, H, D]``, KV dtype, contiguous in ``D``.
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

    Notes
    -----
    Moves ``4 * B * H * D`` elements and is bound by latency. A summary that folds single tokens moves its rows twice;
    for one that does not, the keys of the tail page are read from its frame, ``B * H * D * P`` elements at most.
    """
    batch, heads, dim = k.shape
    kernels = summary.kernels
    assert kernels is not None, "a summary without kernels was not refused at start"
    _append[(batch, heads)](
        k,
        v,
        tail_pages,
        offsets,
        page_table,
        frames,
        summaries,
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
        FOLD_TOKEN=kernels.fold_token,
        FOLD_CHUNK=kernels.fold_chunk,
        num_warps=4 if kernels.fold_token is None else 1,
    )


@triton.jit
def _append(
    k,
    v,
    tail_pages,
    offsets,
    page_table,
    frames,
    summaries,
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
    FOLD_TOKEN: tl.constexpr,
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
            inside = d < DIM
            key = tl.load(k + request * stride_kb + head * stride_kh + d, mask=inside)
            value = tl.load(v + request * stride_vb + head * stride_vh + d, mask=inside)
            block = frames + head * stride_fh + frame * stride_ff
            tl.store(block + d * PAGE_SIZE + offset, key, mask=inside)
            tl.store(block + (PAGE_SIZE + offset) * DIM + d, value, mask=inside)

            rows = summaries + head * stride_mh + page * stride_mn
            if FOLD_TOKEN is not None:
                FOLD_TOKEN(rows, key, offset == 0, DIM, BLOCK_D)
            else:
                i = tl.arange(0, PAGE_SIZE)
                earlier = block + d[:, None] * PAGE_SIZE + i[None, :]
                keys = tl.load(earlier, mask=inside[:, None] & (i < offset)[None, :], other=0.0)
                keys = tl.where((i == offset)[None, :], key[:, None], keys)
                earlier = block + (PAGE_SIZE + i[:, None]) * DIM + d[None, :]
                values = tl.load(earlier, mask=(i < offset)[:, None] & inside[None, :], other=0.0)
                values = tl.where((i == offset)[:, None], value[None, :], values)
                FOLD_CHUNK(rows, keys, values, i <= offset, offset + 1, DIM, BLOCK_D, PAGE_SIZE)
