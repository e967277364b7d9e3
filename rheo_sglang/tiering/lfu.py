"""Keep the pages that were selected most often."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.counting import Counting


class LeastFrequentlyUsed(Counting):
    """State is the number of steps that selected the page."""

    def touch(self, layer: int, pages: torch.Tensor) -> None:
        """See `Policy.touch`."""
        self.state[(layer, *self.selected(layer, pages))] += 1

    def values(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """See `Policy.values`."""
        return 1 - 1 / (1 + self.state[layer].gather(1, pages))
