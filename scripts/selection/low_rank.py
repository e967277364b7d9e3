"""Page-local low rank: a page's keys as their mean plus a few directions of the page's own, in 8 bits."""

from __future__ import annotations

import torch

from selection.rounding import symmetric, symmetric_bytes


def low_rank(keys: torch.Tensor, rank: int) -> torch.Tensor:
    """Keys rebuilt from what is stored.

    The mean is rounded first. The directions and coefficients are the best ones for what is left (the singular
    vectors of the page's ``P x D`` differences), and share the singular value evenly.

    Parameters
    ----------
    keys
        ``[..., P, D]``, float32.
    rank
        Directions of a page.

    Returns
    -------
    torch.Tensor
        ``[..., P, D]``, float32.
    """
    mean = symmetric(keys.mean(-2, keepdim=True), 8)
    left = keys - mean
    squares, vectors = torch.linalg.eigh(left @ left.transpose(-1, -2))
    vectors, values = vectors[..., -rank:], squares[..., -rank:].clamp(min=1e-12).sqrt()
    directions = vectors.transpose(-1, -2) @ left / values.sqrt()[..., None]
    coefficients = (vectors * values.sqrt()[..., None, :]).transpose(-1, -2)
    return mean + symmetric(coefficients, 8).transpose(-1, -2) @ symmetric(directions, 8)


def low_rank_bytes(dim: int, page_size: int, rank: int) -> int:
    """Bytes of the mean, the directions and the coefficients, each vector with its scale."""
    return symmetric_bytes(dim, 8) + rank * (symmetric_bytes(dim, 8) + symmetric_bytes(page_size, 8))
