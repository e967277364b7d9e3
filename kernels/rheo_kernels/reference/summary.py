"""summary: what a page's keys are summarised by, and how keys are folded into it.

``bound`` keeps the bounding box ``(k_min, k_max)`` of the page's keys (2 rows of ``D``), ``mean`` their average
(1 row of ``D``).
"""

from __future__ import annotations

import torch

SUMMARY_ROWS = {"bound": 2, "mean": 1}


def summary_kind(summaries: torch.Tensor) -> str:
    """Kind of a summaries tensor ``[..., R, D]``, told by its number of rows ``R``."""
    return {rows: kind for kind, rows in SUMMARY_ROWS.items()}[summaries.shape[-2]]


def fold_token(
    summaries: torch.Tensor, pages: torch.Tensor, offsets: torch.Tensor, keys: torch.Tensor
) -> None:
    """Fold one key per page into one layer's summaries.

    Parameters
    ----------
    summaries
        ``[H, N, R, D]``; updated.
    pages
        Distinct logical pages, ``[X]``, int64.
    offsets
        Position of the key inside its page, ``[X]``; 0 restarts the page.
    keys
        ``[H, X, D]``.
    """
    first = (offsets == 0)[None, :, None]
    if summary_kind(summaries) == "bound":
        low, high = summaries[:, pages].unbind(2)
        summaries[:, pages, 0] = torch.where(first, keys, torch.minimum(low, keys))
        summaries[:, pages, 1] = torch.where(first, keys, torch.maximum(high, keys))
    else:
        mean = summaries[:, pages, 0]
        summaries[:, pages, 0] = torch.where(first, keys, mean + (keys - mean) / (offsets + 1)[None, :, None])


def fold_chunk(
    summaries: torch.Tensor, pages: torch.Tensor, offsets: torch.Tensor, keys: torch.Tensor
) -> None:
    """Fold consecutive keys of one or more pages into one layer's summaries.

    Parameters
    ----------
    summaries
        ``[H, N, R, D]``; updated.
    pages, offsets
        Logical page and position of each key, ``[T]``, int64. A key at position 0 restarts its page.
    keys
        ``[H, T, D]``.
    """
    touched, local = torch.unique(pages, return_inverse=True)
    index = local[None, :, None].expand_as(keys)
    restarted = torch.zeros(touched.shape, dtype=torch.bool, device=keys.device)
    restarted[local[offsets == 0]] = True
    fresh = restarted[None, :, None]
    if summary_kind(summaries) == "bound":
        low, high = summaries[:, touched].unbind(2)
        low = low.masked_fill(fresh, torch.inf).scatter_reduce(1, index, keys, "amin")
        high = high.masked_fill(fresh, -torch.inf).scatter_reduce(1, index, keys, "amax")
        summaries[:, touched] = torch.stack((low, high), dim=2)
    else:
        start = torch.full(touched.shape, torch.iinfo(torch.int64).max, device=keys.device)
        start.scatter_reduce_(0, local, offsets, "amin")
        count = torch.bincount(local, minlength=touched.numel())
        before = summaries[:, touched, 0].float() * start[None, :, None]
        total = before.masked_fill(fresh, 0.0).scatter_add(1, index, keys.float())
        summaries[:, touched, 0] = (total / (start + count)[None, :, None]).to(summaries.dtype)
