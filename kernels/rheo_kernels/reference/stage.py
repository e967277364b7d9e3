"""stage: pages of one layer, resident or not, gathered into contiguous K and V for dense attention."""

from __future__ import annotations

import torch

from rheo_kernels.reference.blocks import block_keys, block_values


def stage(
    host: torch.Tensor,
    frames: torch.Tensor,
    page_table: torch.Tensor,
    pages: torch.Tensor,
    tokens: torch.Tensor,
    rows: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    page_size: int,
) -> None:
    """Copy the first tokens of pages into K and V, from each KV head's frame where there is one.

    Parameters
    ----------
    host
        One layer's host pages, ``[N, H, 2, D * P]``.
    frames
        One layer's frames, ``[H, F, 2, D * P]``.
    page_table
        One layer's page table, ``[H, N]``, int32.
    pages
        Logical pages, ``[X]``, int32.
    tokens
        Tokens to copy of each page, the first ones, ``[X]``, int32.
    rows
        Row of ``k`` and ``v`` that takes each page's first token, ``[X]``, int32.
    k, v
        Staged keys and values, ``[Y, H, D]``, the dtype to compute in; written.
    page_size
        Tokens per page.

    Notes
    -----
    A frame is at least as new as its host page, so reading frames first is right even where the host page lacks
    tokens.
    """
    blocks = host[pages.long().to(host.device)].to(frames.device)
    frame = page_table[:, pages.long()].long()
    head, listed = (frame >= 0).nonzero(as_tuple=True)
    blocks[listed, head] = frames[head, frame[head, listed]]
    offset = torch.arange(page_size, device=pages.device)
    listed, offset = (offset < tokens[:, None]).nonzero(as_tuple=True)
    target = rows.long()[listed] + offset
    k[target] = block_keys(blocks, page_size)[listed, :, :, offset].to(k.dtype)
    v[target] = block_values(blocks, page_size)[listed, :, offset].to(v.dtype)
