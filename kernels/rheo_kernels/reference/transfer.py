"""load and save: whole page blocks between host pages and frames."""

from __future__ import annotations

import torch


def load(
    host: torch.Tensor,
    frames: torch.Tensor,
    heads: torch.Tensor,
    pages: torch.Tensor,
    targets: torch.Tensor,
) -> None:
    """Copy host pages into frames.

    Parameters
    ----------
    host
        One layer's host pages, ``[N, H, 2, D * P]``.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.
    heads, pages, targets
        KV head, logical page and frame of each copy, ``[X]``, integer; targets are distinct per head.
    """
    blocks = host[pages.long().to(host.device), heads.long().to(host.device)]
    frames[heads.long(), targets.long()] = blocks.to(frames.device)


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
