"""metadata: what a page's keys are summarised by, and how keys are folded into it.

``minmax`` keeps the bounding box ``(k_min, k_max)`` of the page's keys (2 rows of ``D``), ``mean`` their average
(1 row of ``D``).
"""

from __future__ import annotations

import torch

METADATA_ROWS = {"minmax": 2, "mean": 1}


def metadata_kind(metadata: torch.Tensor) -> str:
    """Kind of a metadata tensor ``[..., R, D]``, told by its number of rows ``R``."""
    return {rows: kind for kind, rows in METADATA_ROWS.items()}[metadata.shape[-2]]


def fold_token(
    metadata: torch.Tensor, pages: torch.Tensor, offsets: torch.Tensor, keys: torch.Tensor
) -> None:
    """Fold one key per page into one layer's metadata.

    Parameters
    ----------
    metadata
        ``[H, N, R, D]``; updated.
    pages
        Distinct logical pages, ``[X]``, int64.
    offsets
        Position of the key inside its page, ``[X]``; 0 restarts the page.
    keys
        ``[H, X, D]``.
    """
    first = (offsets == 0)[None, :, None]
    if metadata_kind(metadata) == "minmax":
        low, high = metadata[:, pages].unbind(2)
        metadata[:, pages, 0] = torch.where(first, keys, torch.minimum(low, keys))
        metadata[:, pages, 1] = torch.where(first, keys, torch.maximum(high, keys))
    else:
        mean = metadata[:, pages, 0]
        metadata[:, pages, 0] = torch.where(first, keys, mean + (keys - mean) / (offsets + 1)[None, :, None])


def fold_chunk(
    metadata: torch.Tensor, pages: torch.Tensor, offsets: torch.Tensor, keys: torch.Tensor
) -> None:
    """Fold consecutive keys of one or more pages into one layer's metadata.

    Parameters
    ----------
    metadata
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
    if metadata_kind(metadata) == "minmax":
        low, high = metadata[:, touched].unbind(2)
        low = low.masked_fill(fresh, torch.inf).scatter_reduce(1, index, keys, "amin")
        high = high.masked_fill(fresh, -torch.inf).scatter_reduce(1, index, keys, "amax")
        metadata[:, touched] = torch.stack((low, high), dim=2)
    else:
        start = torch.full(touched.shape, torch.iinfo(torch.int64).max, device=keys.device)
        start.scatter_reduce_(0, local, offsets, "amin")
        count = torch.bincount(local, minlength=touched.numel())
        before = metadata[:, touched, 0].float() * start[None, :, None]
        total = before.masked_fill(fresh, 0.0).scatter_add(1, index, keys.float())
        metadata[:, touched, 0] = (total / (start + count)[None, :, None]).to(metadata.dtype)
