"""write: a prefill chunk's tokens into host pages, and the pages' summaries."""

from __future__ import annotations

import torch

from rheo_kernels.reference.blocks import block_keys, block_values
from rheo_kernels.reference.eight_bits import widen
from rheo_kernels.types.summary import PageSummary


def write(
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    host: torch.Tensor,
    summary: PageSummary,
    summaries: torch.Tensor,
    page_size: int,
) -> None:
    """Store tokens in their host pages and summarise the pages from what they hold then.

    Parameters
    ----------
    k, v
        Keys and values, ``[T, H, D]``, KV dtype.
    slots
        SGLang's slot of each token, ``[T]``, int64. A chunk goes on where its page's earlier tokens, which are in the
        host page, end.
    host
        One layer's host pages, ``[N, H, 2, D * P]``; written.
    summary
        Kind of the summaries.
    summaries
        One layer's summaries, ``[H, N, R, W]``; written.
    page_size
        Tokens per page.
    """
    pages, offset = slots // page_size, slots % page_size
    home, place = pages.to(host.device), offset.to(host.device)
    keys, values = block_keys(host, page_size), block_values(host, page_size)
    keys[home, :, :, place] = k.to(host.device)
    values[home, :, place] = v.to(host.device)

    touched, local = torch.unique(pages, return_inverse=True)
    counts = torch.zeros_like(touched).scatter_reduce(0, local, offset + 1, "amax")
    held_keys, held_values = (
        part[touched.to(host.device)].transpose(0, 1).to(summaries.device) for part in (keys, values)
    )
    summaries[:, touched] = summary.fold_chunk(widen(held_keys), widen(held_values), counts).to(
        summaries.dtype
    )
