"""resolve: selected pages against the page table, into hit frames and missed pages."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.reference import Resolved

COLUMNS_PER_PROGRAM = 512


def resolve(
    selected: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    page_table: torch.Tensor,
    page_size: int,
    out: Resolved | None = None,
) -> Resolved:
    """Look the selection up in one layer's page table, column by column.

    Parameters
    ----------
    selected
        Indices into each request's page list, ``[B, H, S]``, int32, -1 = none; contiguous.
    pages
        Page lists, ``[B, M]``, int32.
    seq_lens
        Tokens of each request, ``[B]``, integer.
    page_table
        One layer's page table, ``[H, N]``, int32, -1 = no frame.
    page_size
        Tokens per page.
    out
        Result buffers, each ``[B, H, S]``, int32, contiguous.

    Returns
    -------
    Resolved
        See `rheo_kernels.reference.resolve`.

    Notes
    -----
    Moves 28 bytes per column. `select_resolve` does this in the selecting kernel; this one serves selections
    made elsewhere, and looking the same selection up again after admission.
    """
    batch, heads, width = selected.shape
    if out is None:
        out = Resolved(*(torch.empty_like(selected) for _ in Resolved._fields))
    _resolve[(triton.cdiv(width, COLUMNS_PER_PROGRAM), heads, batch)](
        selected,
        pages,
        seq_lens,
        page_table,
        *out,
        width,
        pages.stride(0),
        page_table.stride(0),
        PAGE_SIZE=page_size,
        BLOCK=COLUMNS_PER_PROGRAM,
        num_warps=4,
    )
    return out


@triton.jit
def page_tokens(index, seq_len, PAGE_SIZE: tl.constexpr):
    """Tokens that a request of ``seq_len`` tokens has in its page number ``index``, int32."""
    left = seq_len - index * PAGE_SIZE
    return tl.minimum(tl.maximum(left, 0), PAGE_SIZE).to(tl.int32)


@triton.jit
def _resolve(
    selected,
    pages,
    seq_lens,
    page_table,
    out_pages,
    out_hits,
    out_misses,
    out_valid,
    width,
    stride_pb,
    stride_th,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1).to(tl.int64)
    request = tl.program_id(2).to(tl.int64)
    target = (request * tl.num_programs(1) + head) * width + column
    inside = column < width
    index = tl.load(selected + target, mask=inside, other=-1)
    chosen = index >= 0
    page = tl.load(pages + request * stride_pb + index, mask=chosen, other=-1)
    frame = tl.load(page_table + head * stride_th + page, mask=chosen, other=-1)
    resident = frame >= 0
    tokens = page_tokens(index, tl.load(seq_lens + request), PAGE_SIZE)
    tl.store(out_pages + target, page, mask=inside)
    tl.store(out_hits + target, tl.where(resident, frame, -1), mask=inside)
    tl.store(out_misses + target, tl.where(resident, -1, page), mask=inside)
    tl.store(out_valid + target, tl.where(chosen, tokens, 0), mask=inside)
