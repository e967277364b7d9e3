"""Keep the pages that attention has ranked highest, averaged over steps and requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rheo_sglang.tiering.base import Policy

if TYPE_CHECKING:
    from rheo_sglang.page_table import PageTable

IDLE_DECAY = 0.7
"""Factor per decode step on the value of a page that no running request lists: its rank in such a step is none.
Without it, pages of finished requests hold frames for as long as their prefixes are cached."""


class Importance(Policy):
    """The page table's importance, fading while nobody runs over the page; there is no state of its own."""

    idle_decay = IDLE_DECAY

    def __init__(self, table: PageTable) -> None:
        super().__init__(table)
        self.worth = table.importance

    def touch(self, layer: int, pages: torch.Tensor) -> None:
        """Nothing to record."""

    def reset(self, pages: torch.Tensor) -> None:
        """Nothing to forget."""

    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """Nothing to inherit beyond importance itself."""
