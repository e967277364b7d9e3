"""Estimates: the estimated attention of every listed page."""

from __future__ import annotations

from typing import NamedTuple

import torch

PAGES_PER_BLOCK = 8
"""Consecutive pages that share an entry of `Estimates.block_lse`."""


LEAST_SCORE = -80.0
"""Score of a page that draws a share of ``exp(LEAST_SCORE)`` or less: nothing that float32 adds to a sum."""


class Estimates(NamedTuple):
    """Estimated attention of every listed page."""

    lse: torch.Tensor
    """Natural-log LSE of every page, ``[B, Hq, M]``, float32, contiguous; ``-inf`` past the last page."""
    block_lse: torch.Tensor
    """The same of every block of `PAGES_PER_BLOCK` pages, ``[B, Hq, blocks]``, float32, contiguous."""

    @classmethod
    def allocate(cls, batch: int, queries: int, width: int, device: torch.device | str) -> Estimates:
        """Buffers for ``batch`` requests with lists of up to ``width`` pages."""
        blocks = -(-width // PAGES_PER_BLOCK)
        return cls(
            torch.empty((batch, queries, width), dtype=torch.float32, device=device),
            torch.empty((batch, queries, blocks), dtype=torch.float32, device=device),
        )
