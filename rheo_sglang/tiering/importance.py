"""Keep the pages that attention has ranked highest, averaged over steps and requests."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.base import Policy


class Importance(Policy):
    """The page table's importance is the value; there is no state of its own."""

    def touch(self, layer: int, pages: torch.Tensor) -> None:
        """Nothing to record."""

    def values(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """See `Policy.values`."""
        return self.importance[layer].gather(1, pages)

    def reset(self, pages: torch.Tensor) -> None:
        """Nothing to forget."""

    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """Nothing to inherit beyond importance itself."""
