"""fixed: a fixed share of a request's pages."""

from __future__ import annotations

import torch

from rheo_sglang.budget.base import BUDGETS, BudgetRule
from rheo_sglang.budget.share import share_of


@BUDGETS.register
class FixedBudget(BudgetRule):
    """``ceil(ratio * pages)`` with the ratio as it was written: 0.3 of 50 pages are 15."""

    name = "fixed"

    @property
    def selects_all(self) -> bool:
        """Whether the share is all."""
        return self.ratio == 1

    def cap(self, num_pages: torch.Tensor) -> torch.Tensor:
        """The share."""
        return share_of(num_pages, self.ratio)
