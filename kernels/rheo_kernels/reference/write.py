"""write: a prefill chunk's tokens into host pages, with the pages' summaries in the same pass."""

from __future__ import annotations

import torch

from rheo_kernels.reference.blocks import block_keys, block_values
from rheo_kernels.reference.summary import fold_chunk


def write(
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    host: torch.Tensor,
    summaries: torch.Tensor,
    page_size: int,
) -> None:
    """Store tokens in their host pages and fold their keys into the pages' summaries.

    Parameters
    ----------
    k, v
        Keys and values, ``[T, H, D]``, KV dtype.
    slots
        SGLang's slot of each token, ``[T]``, int64; a token in the first slot of a page starts the page.
    host
        One layer's host pages, ``[N, H, 2, D * P]``; written.
    summaries
        One layer's summaries, ``[H, N, R, D]``; written.
    page_size
        Tokens per page.
    """
    pages, offset = slots // page_size, slots % page_size
    home, place = pages.to(host.device), offset.to(host.device)
    block_keys(host, page_size)[home, :, :, place] = k.to(host.device)
    block_values(host, page_size)[home, :, place] = v.to(host.device)
    fold_chunk(summaries, pages, offset, k.transpose(0, 1))
