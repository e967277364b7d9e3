"""append: one new token per request into its tail page's frames, and into the page's summary."""

from __future__ import annotations

import torch

from rheo_kernels.reference.blocks import block_keys, block_values
from rheo_kernels.types.summary import PageSummary


def append(
    k: torch.Tensor,
    v: torch.Tensor,
    tail_pages: torch.Tensor,
    offsets: torch.Tensor,
    page_table: torch.Tensor,
    frames: torch.Tensor,
    summary: PageSummary,
    summaries: torch.Tensor,
    page_size: int,
) -> None:
    """Store one token per request in its resident tail page and fold it into the page's summary.

    Parameters
    ----------
    k, v
        New keys and values, ``[B, H, D]``, KV dtype.
    tail_pages
        Logical page that receives the token, ``[B]``, int32; 0 marks a padded row, which is skipped.
    offsets
        Position inside the tail page, ``[B]``, int32; 0 restarts the page's summary.
    page_table
        One layer's page table, ``[H, N]``, int32. Every tail page is resident in every KV head.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.
    summary
        Kind of the summaries.
    summaries
        One layer's summaries, ``[H, N, R, W]``; written.
    page_size
        Tokens per page.

    Notes
    -----
    Moves ``4 * B * H * D`` elements and is bound by latency. Tail pages are distinct: a page that is still
    being written belongs to one request.
    """
    rows = (tail_pages > 0).nonzero().squeeze(1)
    pages, offset = tail_pages[rows].long(), offsets[rows].long()
    frame = page_table[:, pages].long()
    assert bool((frame >= 0).all()), "a tail page has no frame"
    key, value = k[rows].transpose(0, 1), v[rows].transpose(0, 1)
    head = torch.arange(frame.shape[0], device=k.device)[:, None]
    block_keys(frames, page_size)[head, frame, :, offset] = key
    block_values(frames, page_size)[head, frame, offset] = value

    folded = summary.fold_token(summaries[:, pages], key, offset == 0)
    if folded is None:
        keys, values = block_keys(frames, page_size), block_values(frames, page_size)
        folded = summary.fold_chunk(keys[head, frame], values[head, frame], offset + 1)
    summaries[:, pages] = folded.to(summaries.dtype)
