"""Keep the pages that were selected most often."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.counting import Counting


class LeastFrequentlyUsed(Counting):
    """A page that ``n`` steps selected is worth ``1 - 1 / (1 + n)``."""

    def raised(self, worth: torch.Tensor) -> torch.Tensor:
        """See `Counting.raised`."""
        return 1 - 1 / (1 / (1 - worth) + 1)
