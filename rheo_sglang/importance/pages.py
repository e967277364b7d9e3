"""PageImportance: importance of logical pages, read from the page table and its policy."""

from __future__ import annotations

import torch

from rheo_sglang.page_table import PageTable


class PageImportance:
    """`BlockImportance` over a page table.

    Parameters
    ----------
    table
        Page table; its policy keeps a value of every row, a page in one layer and KV head. They are read at face value,
        without what tiering takes off for idle steps: `idle_steps` says how many those are.

    Notes
    -----
    A page that the scheduler freed since the last forward pass has importance 0 at once. What it folded counts from
    the next forward pass on.
    """

    def __init__(self, table: PageTable) -> None:
        self.table = table

    def get_importance(self, page_id: int) -> float:
        """Importance of one page; waits for the device. Raises IndexError for a number that names no page."""
        if not 0 <= page_id < self.table.pages:
            raise IndexError(f"page {page_id} is not one; allowed: 0 to {self.table.pages - 1}")
        page = torch.tensor([page_id], device=self.table.frame_of.device)
        return float(self.of_pages(page))

    def of_rows(self, pages: torch.Tensor) -> torch.Tensor:
        """Importance in every layer and KV head: ``[X]``, integer, to ``[L, H, X]``, float32."""
        rows = self.table.policy.worth[:, :, pages.long()]
        return rows.masked_fill(self.table.freed(pages.long()), 0.0)

    def of_pages(self, pages: torch.Tensor) -> torch.Tensor:
        """Importance of pages: ``[X]``, integer, to ``[X]``, float32."""
        pages = pages.long()
        return self.of_held(pages).masked_fill(self.table.freed(pages), 0.0)

    def of_held(self, pages: torch.Tensor) -> torch.Tensor:
        """As `of_pages`, ``[X]``, int64, of pages that a request or the tree holds, which are not freed."""
        total = torch.zeros(pages.shape, dtype=torch.float32, device=pages.device)
        worth = self.table.policy.worth
        for layer in worth:
            total += layer[:, pages].mean(0)
        return (total / worth.shape[0]).clamp_(max=1.0)

    def mean(self, pages: torch.Tensor) -> torch.Tensor:
        """Mean importance of some pages, ``[X]``, integer: a scalar, float32; NaN of no pages."""
        return self.of_pages(pages).mean()

    def resident(self, pages: torch.Tensor) -> torch.Tensor:
        """Share of each page's (layer, KV head) rows that have a frame: ``[X]``, int64, to ``[X]``, float32."""
        total = torch.zeros(pages.shape, dtype=torch.float32, device=pages.device)
        for layer in self.table.frame_of:
            total += (layer[:, pages] >= 0).float().mean(0)
        return total / self.table.frame_of.shape[0]

    def idle_steps(self, pages: torch.Tensor) -> torch.Tensor:
        """Decode steps since a running request last listed each page: ``[X]``, integer, to ``[X]``, int32."""
        return self.table.step - self.table.last_active[pages.long()]
