"""What LRU and LFU share: one number per page that selections raise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rheo_sglang.tiering.base import Policy

if TYPE_CHECKING:
    from rheo_sglang.page_table import PageTable


class Counting(Policy):
    """A policy over one state value per page, ``[L, H, N]``, float32, 0 for pages never selected."""

    def __init__(self, table: PageTable) -> None:
        super().__init__(table)
        self.state = torch.zeros_like(table.importance)

    def reset(self, pages: torch.Tensor) -> None:
        """See `Policy.reset`."""
        self.state[:, :, pages] = 0

    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """See `Policy.fold`."""
        self.state[:, :, survivors] = torch.maximum(self.state[:, :, survivors], self.state[:, :, duplicates])

    def selected(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Head and page of every distinct selected page, each ``[X]``, int64."""
        mark = torch.zeros(self.state.shape[1:], dtype=torch.bool, device=pages.device)
        batch, head, column = (pages >= 0).nonzero(as_tuple=True)
        mark[head, pages[batch, head, column].long()] = True
        heads, distinct = mark.nonzero(as_tuple=True)
        return heads, distinct
