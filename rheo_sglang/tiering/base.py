"""Policy: the interface of every tiering policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rheo_sglang.page_table import PageTable

SELECTED = 1.0
"""Added to the worth of a page that the current step selected: worths lie in [0, 1], so it outranks all others."""


class Policy(ABC):
    """Values pages for admission and eviction.

    A page's value is its ``worth``, times ``idle_decay`` for every decode step since a running request last listed
    it. Kernels that weigh frames read both directly.

    Parameters
    ----------
    table
        The page table whose pages are valued; read only.

    Attributes
    ----------
    worth
        ``[L, H, N]``, float32 in [0, 1]; 0 for pages that were never selected.
    idle_decay
        In (0, 1].
    """

    worth: torch.Tensor
    idle_decay: float = 1.0

    def __init__(self, table: PageTable) -> None:
        self.table = table

    @abstractmethod
    def touch(self, layer: int, pages: torch.Tensor) -> None:
        """Record one step's selection in one layer, without a host synchronisation.

        Parameters
        ----------
        layer
            Layer index.
        pages
            Selected logical pages, ``[B, H, S]``, int32, -1 = none.
        """
        ...

    @abstractmethod
    def reset(self, pages: torch.Tensor) -> None:
        """Forget freed pages, ``[X]``, int64."""
        ...

    @abstractmethod
    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """Let survivors inherit from the duplicates that are about to be freed, both ``[X]``, int64."""
        ...

    def values(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """What pages are worth in one layer now.

        Parameters
        ----------
        layer
            Layer index.
        pages
            Logical pages per KV head, ``[H, X]``, int64, all valid.

        Returns
        -------
        torch.Tensor
            ``[H, X]``, float32 in [0, 1].
        """
        worth = self.worth[layer].gather(1, pages)
        if self.idle_decay == 1.0:
            return worth
        return worth * torch.pow(self.idle_decay, self.table.step - self.table.listed_at[pages])
