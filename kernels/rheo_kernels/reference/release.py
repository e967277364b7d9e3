"""release: frames of freed pages, reclaimed in every layer and KV head."""

from __future__ import annotations

import torch


def release(pages: torch.Tensor, page_table: torch.Tensor, page_of: torch.Tensor) -> None:
    """Free the pages' frames. A row is one KV head of one layer, ``R = L * H``.

    Parameters
    ----------
    pages
        Logical pages, ``[X]``, integer.
    page_table
        ``[R, N]``, int32; updated.
    page_of
        Page in each frame, ``[R, F]``, int32, -1 = free; updated.
    """
    pages = pages.long()
    frame = page_table[:, pages].long()
    row, column = (frame >= 0).nonzero(as_tuple=True)
    page_of[row, frame[row, column]] = -1
    page_table[:, pages] = -1
