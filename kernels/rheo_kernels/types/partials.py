"""Partials: attention over parts of page lists, before they are merged."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Partials(NamedTuple):
    """Attention over disjoint parts of page lists, before they are merged."""

    out: torch.Tensor
    """Normalised within its part, ``[B * H, splits, G, D]``, float32, contiguous."""
    lse: torch.Tensor
    """Base-2 LSE, ``[B * H, splits, G]``, float32, contiguous; ``-inf`` for an empty part."""

    @classmethod
    def allocate(cls, pairs: int, group: int, dim: int, splits: int, device: torch.device | str) -> Partials:
        """Buffers for ``pairs = B * H`` page lists."""
        return cls(
            torch.empty((pairs, splits, group, dim), dtype=torch.float32, device=device),
            torch.empty((pairs, splits, group), dtype=torch.float32, device=device),
        )

    @property
    def splits(self) -> int:
        """Parts of every list."""
        return self.out.shape[1]
