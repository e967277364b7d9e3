"""What LRU and LFU share: a worth of their own, which selections raise."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from rheo_sglang.tiering.base import Policy

if TYPE_CHECKING:
    from rheo_sglang.page_table import PageTable


class Counting(Policy):
    """A policy whose worth changes when a page is selected, and only then."""

    def __init__(self, table: PageTable) -> None:
        super().__init__(table)
        self.worth = torch.zeros_like(table.importance)

    @abstractmethod
    def raised(self, worth: torch.Tensor) -> torch.Tensor:
        """Worth of selected pages after this step, from the one before it; same shape."""
        ...

    def touch(self, layer: int, pages: torch.Tensor) -> None:
        """See `Policy.touch`; a page that several requests selected counts once."""
        flat = pages.transpose(0, 1).flatten(1)
        index = flat.clamp(min=0).long()
        raised = self.raised(self.worth[layer].gather(1, index))
        self.worth[layer].scatter_(1, index, raised.masked_fill(flat < 0, 0.0))

    def reset(self, pages: torch.Tensor) -> None:
        """See `Policy.reset`."""
        self.worth.index_fill_(2, pages, 0.0)

    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """See `Policy.fold`."""
        self.worth[:, :, survivors] = torch.maximum(self.worth[:, :, survivors], self.worth[:, :, duplicates])
