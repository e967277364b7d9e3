"""load and save: whole page blocks between host pages and frames."""

from __future__ import annotations

import torch


def load(
    host: torch.Tensor,
    frames: torch.Tensor,
    pages: torch.Tensor,
    targets: torch.Tensor,
    counts: torch.Tensor,
) -> None:
    """Copy host pages into frames. A row is one KV head.

    Parameters
    ----------
    host
        One layer's host pages, ``[N, H, 2, D * P]``.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.
    pages, targets
        Logical page and frame of each copy, ``[H, C]``, integer; targets of a row are distinct.
    counts
        Copies of each row, the first columns, ``[H]``, integer.
    """
    column = torch.arange(pages.shape[1], device=pages.device)
    head, place = (column < counts[:, None]).nonzero(as_tuple=True)
    blocks = host[pages[head, place].long().to(host.device), head.to(host.device)]
    frames[head, targets[head, place].long()] = blocks.to(frames.device)


def save(
    frames: torch.Tensor,
    host: torch.Tensor,
    page_table: torch.Tensor,
    pages: torch.Tensor,
) -> None:
    """Copy resident pages, in every KV head, to their host pages.

    Parameters
    ----------
    frames
        One layer's frames, ``[H, F, 2, D * P]``.
    host
        One layer's host pages, ``[N, H, 2, D * P]``; written.
    page_table
        One layer's page table, ``[H, N]``, int32; every saved page is resident in every KV head.
    pages
        Logical pages, ``[X]``, integer.
    """
    listed = pages.long()
    frame = page_table[:, listed].long()
    assert bool((frame >= 0).all()), "a page to be saved has no frame"
    head = torch.arange(frame.shape[0], device=frames.device)[:, None]
    host[listed.to(host.device)] = frames[head, frame].transpose(0, 1).to(host.device)
