"""Policy: the interface of every tiering policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rheo_sglang.page_table import PageTable

SELECTED = 1.0
"""Added to the value of a page that the current step selected: values lie in [0, 1], so it outranks all others."""


class Policy(ABC):
    """Values pages for admission and eviction.

    Parameters
    ----------
    table
        The page table whose pages are valued; read only.
    """

    def __init__(self, table: PageTable) -> None:
        self.table = table

    @abstractmethod
    def touch(self, layer: int, pages: torch.Tensor) -> None:
        """Record one step's selection in one layer.

        Parameters
        ----------
        layer
            Layer index.
        pages
            Selected logical pages, ``[B, H, S]``, int32, -1 = none.
        """
        ...

    @abstractmethod
    def values(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """What pages are worth in one layer.

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
        ...

    @abstractmethod
    def reset(self, pages: torch.Tensor) -> None:
        """Forget freed pages, ``[X]``, int64."""
        ...

    @abstractmethod
    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """Let survivors inherit from the duplicates that are about to be freed, both ``[X]``, int64."""
        ...
