"""place: copy whole pages that a prefill pass has in contiguous K and V into the frames they were admitted to."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PLACERS = 512
"""Programs over all KV heads: enough to fill HBM."""


def place(
    k: torch.Tensor,
    v: torch.Tensor,
    row_of: torch.Tensor,
    pages: torch.Tensor,
    targets: torch.Tensor,
    counts: torch.Tensor,
    frames: torch.Tensor,
) -> None:
    """Copy whole pages from contiguous keys and values into frames.

    Parameters
    ----------
    k, v
        Keys and values, ``[Y, H, D]``, contiguous in ``D``; numbers that the KV dtype holds.
    row_of
        Row of ``k`` and ``v`` with the first token of each logical page, ``[N]``, int32; its other tokens follow.
    pages, targets
        Logical page and frame of each copy, ``[H, C]``, int32, contiguous; targets of a row are distinct.
    counts
        Copies of each KV head, the first columns, ``[H]``, int32.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.

    Notes
    -----
    Reads and writes ``2 * D * P`` elements a copy; K is transposed in registers. Bound by HBM.
    """
    heads, dim = k.shape[1:]
    page_size = frames.shape[3] // dim
    columns = pages.shape[1]
    block_d = triton.next_power_of_2(dim)
    _place[(max(min(PLACERS // heads, columns), 1), heads)](
        k,
        v,
        row_of,
        pages,
        targets,
        counts,
        frames,
        columns,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        frames.stride(0),
        frames.stride(1),
        DIM=dim,
        BLOCK_D=block_d,
        PAGE_SIZE=page_size,
        num_warps=4 if block_d * page_size <= 4096 else 8,
    )


@triton.jit(do_not_specialize=["columns"])
def _place(
    k,
    v,
    row_of,
    pages,
    targets,
    counts,
    frames,
    columns,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_fh,
    stride_ff,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    offset = tl.arange(0, PAGE_SIZE)
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    for column in range(tl.program_id(0), tl.load(counts + head), tl.num_programs(0)):
        page = tl.load(pages + head * columns + column)
        frame = tl.load(targets + head * columns + column).to(tl.int64)
        token = (tl.load(row_of + page) + offset).to(tl.int64)
        key = tl.load(k + head * stride_kh + token[None, :] * stride_kt + d[:, None], mask=inside[:, None])
        value = tl.load(v + head * stride_vh + token[:, None] * stride_vt + d[None, :], mask=inside[None, :])
        block = frames + head * stride_fh + frame * stride_ff
        tl.store(block + d[:, None] * PAGE_SIZE + offset[None, :], key, mask=inside[:, None])
        tl.store(block + DIM * PAGE_SIZE + offset[:, None] * DIM + d[None, :], value, mask=inside[None, :])
