"""fill: copy missed pages that were fetched for attention from the staging buffer into their frames."""

from __future__ import annotations

import torch


def fill(
    staged: torch.Tensor,
    misses: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    page_table: torch.Tensor,
    frames: torch.Tensor,
    fetched: torch.Tensor | None = None,
) -> None:
    """Copy every staged page that was admitted, which is one that has a frame by now.

    Parameters
    ----------
    staged
        Blocks of the first ``room`` fetched pages of each list, ``[B * H, room, 2, D * P]``.
    misses
        Missed pages, ``[B, H, S]``, int32.
    first, last
        Columns of ``misses`` that were fetched, ``[first, last)``, ``[B, H]``, int32.
    page_table
        One layer's page table after admission, ``[H, N]``, int32.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.
    fetched
        Pages that were fetched, with or without room for them, scalar, int64; added to. None: not counted.
    """
    batch, heads, width = misses.shape
    room = staged.shape[1]
    column = torch.arange(width, device=misses.device)
    read = (column >= first[..., None]) & (column < last[..., None])
    if fetched is not None:
        fetched += read.sum()
    staged_columns = read & (column - first[..., None] < room)
    request, head, at = staged_columns.nonzero(as_tuple=True)
    frame = page_table[head, misses[request, head, at].long()].long()
    place = at - first[request, head]
    admitted = frame >= 0
    source = staged.view(batch, heads, *staged.shape[1:])
    frames[head[admitted], frame[admitted]] = source[request[admitted], head[admitted], place[admitted]]
