"""root_budget: pages grow with the square root of the length, and those far from the best score are left out."""

import math

import torch
import triton
import triton.language as tl

from rheo_sglang.budget import BUDGETS, BudgetRule

MARGIN = tl.constexpr(4.0)


@triton.jit
def _allow(scores, num_pages, cap):
    return tl.sum((scores >= tl.max(scores, 0) - MARGIN).to(tl.int32), 0)


@BUDGETS.register
class RootBudget(BudgetRule):
    """``16 sqrt(pages)``, rounded up; in a step, as many of them as score within `MARGIN` of the best page."""

    name = "root"
    allow_kernel = _allow

    def cap(self, num_pages: torch.Tensor) -> torch.Tensor:
        roots = [math.isqrt(max(256 * pages - 1, 0)) + (pages > 0) for pages in num_pages.tolist()]
        return torch.tensor(roots, dtype=torch.int64)

    def allow(self, scores: torch.Tensor, num_pages: torch.Tensor, caps: torch.Tensor) -> torch.Tensor:
        return (scores >= scores.amax(2, keepdim=True) - MARGIN.value).sum(2)
