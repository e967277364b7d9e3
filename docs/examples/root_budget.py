"""root_budget: pages grow with the square root of the length, and in a step with how many score near the best one."""

import math

import torch
import triton
import triton.language as tl

from rheo_sglang.budget import BUDGETS, BudgetRule

MARGIN = tl.constexpr(4.0)


@triton.jit
def _allow(scores, num_pages, budget, limit):
    near = (scores >= tl.max(scores, 0) - MARGIN) & (scores > float("-inf"))
    return tl.sum(near.to(tl.int32), 0)


@BUDGETS.register
class RootBudget(BudgetRule):
    """``16 sqrt(pages)``, rounded up; in a step, up to the limit, all that score within `MARGIN` of the best one."""

    name = "root"
    allow_kernel = _allow

    def cap(self, num_pages: torch.Tensor) -> torch.Tensor:
        roots = [math.isqrt(max(256 * pages - 1, 0)) + (pages > 0) for pages in num_pages.tolist()]
        return torch.tensor(roots, dtype=torch.int64)

    def allow(
        self, scores: torch.Tensor, num_pages: torch.Tensor, budget: torch.Tensor, limit: torch.Tensor
    ) -> torch.Tensor:
        near = (scores >= scores.amax(2, keepdim=True) - MARGIN.value) & (scores > -torch.inf)
        return near.sum(2)
