"""attend_dense: decode attention over whole page lists, each page read from its frame or else from host memory."""

from __future__ import annotations

import torch

from rheo_kernels.reference.attend import attend
from rheo_kernels.reference.merge import merge


def attend_dense(
    q: torch.Tensor,
    frames: torch.Tensor,
    host: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    page_table: torch.Tensor,
    scale: float,
    page_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend one query token per request to all of its pages.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``.
    frames
        One layer's frames, ``[H, F, 2, D * P]``.
    host
        One layer's host pages, ``[N, H, 2, D * P]``; read where a page has no frame.
    pages
        Page lists, ``[B, M]``, int32; columns beyond a request's last page may hold anything.
    seq_lens
        Tokens of each request, ``[B]``, int32; 0 for a padded row.
    page_table
        One layer's page table, ``[H, N]``, int32, negative = no frame.
    scale
        Softmax scale.
    page_size
        Tokens per page.

    Returns
    -------
    tuple of torch.Tensor
        Output ``[B, Hq, D]`` and natural-log LSE ``[B, Hq]``, float32; ``(0, -inf)`` for a padded row.
    """
    heads = page_table.shape[0]
    tokens = (seq_lens[:, None] - torch.arange(pages.shape[1], device=pages.device) * page_size).clamp(
        0, page_size
    )
    listed = pages.masked_fill(tokens == 0, 0).long()
    frame = page_table[:, listed].transpose(0, 1)
    valid = tokens.to(torch.int32)[:, None].expand(-1, heads, -1)
    hits = torch.where(valid > 0, frame, -1)
    misses = torch.where((valid > 0) & (frame < 0), listed[:, None].int(), -1)
    return merge(
        *attend(q, frames, hits, valid, scale, page_size),
        *attend(q, host.transpose(0, 1), misses, valid, scale, page_size),
    )
