"""Admitted: the pages that admission gave frames."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Admitted(NamedTuple):
    """Pages that received a frame, per row of the page table; columns from ``counts`` on mean nothing."""

    pages: torch.Tensor
    """``[R, C]``, int32."""
    frames: torch.Tensor
    """``[R, C]``, int32."""
    counts: torch.Tensor
    """``[R]``, int32."""

    @classmethod
    def allocate(cls, rows: int, candidates: int, device: torch.device | str) -> Admitted:
        """Buffers for ``R`` rows of ``C`` candidates."""
        pages, frames = (torch.empty((rows, candidates), dtype=torch.int32, device=device) for _ in range(2))
        return cls(pages, frames, torch.empty(rows, dtype=torch.int32, device=device))
