"""release: frames of freed pages, reclaimed in every layer and KV head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PAGES_PER_PROGRAM = 128


def release(pages: torch.Tensor, page_table: torch.Tensor, page_of: torch.Tensor) -> None:
    """Free the pages' frames. A row is one KV head of one layer, ``R = L * H``.

    Parameters
    ----------
    pages
        Logical pages, ``[X]``, integer.
    page_table
        ``[R, N]``, int32; updated.
    page_of
        Page in each frame, ``[R, F]``, int32; updated.

    Notes
    -----
    Moves about 12 bytes a page and row.
    """
    count = pages.shape[0]
    if count == 0:
        return
    _release[(triton.cdiv(count, PAGES_PER_PROGRAM), page_table.shape[0])](
        pages,
        page_table,
        page_of,
        count,
        page_table.stride(0),
        page_of.stride(0),
        BLOCK=PAGES_PER_PROGRAM,
        num_warps=4,
    )


@triton.jit
def _release(pages, page_table, page_of, count, stride_tr, stride_pr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64)
    listed = i < count
    page = tl.load(pages + i, mask=listed, other=0)
    frame = tl.load(page_table + row * stride_tr + page, mask=listed, other=-1)
    none = tl.full([BLOCK], -1, tl.int32)
    tl.store(page_of + row * stride_pr + frame, none, mask=frame >= 0)
    tl.store(page_table + row * stride_tr + page, none, mask=listed)
