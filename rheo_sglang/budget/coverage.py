"""coverage: as many pages as hold a share of the estimated attention (top-p), between a budget and a limit."""

from __future__ import annotations

from typing import ClassVar

from rheo_sglang.budget.base import BUDGETS
from rheo_sglang.budget.fixed import FixedBudget


@BUDGETS.register
class CoverageBudget(FixedBudget):
    """The share ``budget_ratio`` in any case, and what ``budget_coverage`` asks for beyond it.

    For every step and KV head, the best pages are counted until they hold, with those that are always selected,
    ``budget_coverage`` of the estimated attention (`rheo_kernels.reference.cover`). They are never more than
    ``budget_limit_ratio`` of the request's pages. Top-p sampling of pages: Twilight (Lin et al., 2025).
    """

    name = "coverage"
    follows_floor: ClassVar[bool] = True
