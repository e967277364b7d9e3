"""Keep the pages that were selected most recently."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.counting import Counting

STEP_WORTH = 2.0**-23
"""Worth of one step: float32 tells this many steps apart below and, with `SELECTED` added, above 1."""


class LeastRecentlyUsed(Counting):
    """A page is worth the step of its last selection."""

    def raised(self, worth: torch.Tensor) -> torch.Tensor:
        """See `Counting.raised`."""
        return ((self.table.step + 1) * STEP_WORTH).clamp(max=1.0).expand_as(worth)
