"""Views of K and V inside page blocks."""

from __future__ import annotations

import torch


def block_keys(blocks: torch.Tensor, page_size: int) -> torch.Tensor:
    """K of page blocks ``[..., 2, D * P]`` as a token-inner view ``[..., D, P]``."""
    return blocks[..., 0, :].unflatten(-1, (-1, page_size))


def block_values(blocks: torch.Tensor, page_size: int) -> torch.Tensor:
    """V of page blocks ``[..., 2, D * P]`` as a row-major view ``[..., P, D]``."""
    return blocks[..., 1, :].unflatten(-1, (page_size, -1))
