"""Keep the pages that were selected most recently."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rheo_sglang.tiering.counting import Counting

if TYPE_CHECKING:
    from rheo_sglang.page_table import PageTable


class LeastRecentlyUsed(Counting):
    """State is the step of the last selection; steps are counted per layer."""

    def __init__(self, table: PageTable) -> None:
        super().__init__(table)
        self.step = [0] * table.importance.shape[0]

    def touch(self, layer: int, pages: torch.Tensor) -> None:
        """See `Policy.touch`."""
        self.step[layer] += 1
        self.state[(layer, *self.selected(layer, pages))] = float(self.step[layer])

    def values(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """See `Policy.values`."""
        return self.state[layer].gather(1, pages) / (self.step[layer] + 1)
