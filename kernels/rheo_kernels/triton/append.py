"""append: one new token per request into its tail page's frames, and into the page's summary."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def append(
    k: torch.Tensor,
    v: torch.Tensor,
    tail_pages: torch.Tensor,
    offsets: torch.Tensor,
    page_table: torch.Tensor,
    frames: torch.Tensor,
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
    summaries
        One layer's summaries, ``[H, N, R, D]``; written.
    page_size
        Tokens per page.

    Notes
    -----
    Moves ``(4 + 2 R) * B * H * D`` elements and is bound by latency. The mean is folded in float32 and
    rounded once.
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
        BOUND=summaries.shape[2] == 2,
        num_warps=1,
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
    BOUND: tl.constexpr,
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

            row = summaries + head * stride_mh + page * stride_mn + d
            first = offset == 0
            if BOUND:
                wide = key.to(tl.float32)
                low = tl.load(row, mask=inside)
                high = tl.load(row + DIM, mask=inside)
                tl.store(row, tl.where(first | (wide < low.to(tl.float32)), key, low), mask=inside)
                tl.store(row + DIM, tl.where(first | (wide > high.to(tl.float32)), key, high), mask=inside)
            else:
                mean = tl.where(first, 0.0, tl.load(row, mask=inside).to(tl.float32))
                mean += (key.to(tl.float32) - mean) / (offset + 1)
                tl.store(row, mean.to(summaries.dtype.element_ty), mask=inside)
