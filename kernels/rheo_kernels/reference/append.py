"""append: one new token per request into its tail page's frames, and into the page's summary."""

from __future__ import annotations

import torch

from rheo_kernels.reference.blocks import block_keys, block_values
from rheo_kernels.reference.eight_bits import quantise, widen
from rheo_kernels.types.kv_scales import UNSCALED, KVScales
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
    scales: KVScales = UNSCALED,
) -> None:
    """Store one token per request in its resident tail page and fold it into the page's summary.

    Parameters
    ----------
    k, v
        New keys and values, ``[B, H, D]``; KV dtype, or any floating one where that is of 8 bits.
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
    scales
        Of 8 bits.

    Notes
    -----
    Moves ``4 * B * H * D`` elements and is bound by latency. Tail pages are distinct: a page that is still
    being written belongs to one request.
    """
    rows = (tail_pages > 0).nonzero().squeeze(1)
    pages, offset = tail_pages[rows].long(), offsets[rows].long()
    frame = page_table[:, pages].long()
    assert bool((frame >= 0).all()), "a tail page has no frame"
    key, value = (
        quantise(new[rows].transpose(0, 1), scale, frames.dtype)
        for new, scale in ((k, scales.k), (v, scales.v))
    )
    head = torch.arange(frame.shape[0], device=k.device)[:, None]
    block_keys(frames, page_size)[head, frame, :, offset] = key
    block_values(frames, page_size)[head, frame, offset] = value

    folded = summary.fold_token(summaries[:, pages], widen(key), offset == 0)
    if folded is None:
        keys, values = block_keys(frames, page_size), block_values(frames, page_size)
        folded = summary.fold_chunk(widen(keys[head, frame]), widen(values[head, frame]), offset + 1)
    summaries[:, pages] = folded.to(summaries.dtype)
