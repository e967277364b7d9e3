"""BudgetRule: how many pages a request may select, by its length, and by its scores where a rule looks at them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any, ClassVar

import torch

from rheo_sglang.errors import reject
from rheo_sglang.registry import Registry


class BudgetRule(ABC):
    """A kind of budget; `BUDGETS` has all of them by name.

    The budget of a request, which every KV head may select in any step, follows from its number of pages, in whole
    numbers, once for every length (`BudgetTable`). What a rule finds in a step's scores may raise it, for each request
    and KV head, up to the request's limit.

    Parameters
    ----------
    ratio
        The setting ``budget_ratio``, exactly the decimal that was written.

    Attributes
    ----------
    name
        Value of the setting ``budget``.
    follows_floor
        Whether the setting ``budget_coverage`` is a floor of the requests' settings: in every step as many pages are
        selected as hold that share of the estimated attention.
    allow_kernel
        What `allow` computes, as a Triton device function (``@triton.jit``), for rules that look at scores:
        ``(scores, num_pages, budget, limit) -> int32`` for one (request, KV head); ``scores`` is ``[BLOCK_M]``,
        float32, ``-inf`` for pages that are always selected, the others are scalars.
    """

    name: ClassVar[str]
    follows_floor: ClassVar[bool] = False
    allow_kernel: ClassVar[Any] = None

    def __init__(self, ratio: Fraction) -> None:
        if self.allow_kernel is not None and not self.reads_scores:
            reject(
                "budget", self.name, f"rules whose allow_kernel has an allow ({type(self).__name__} has none)"
            )
        self.ratio = ratio

    @abstractmethod
    def cap(self, num_pages: torch.Tensor) -> torch.Tensor:
        """Pages that every KV head of a request may select in any step.

        Parameters
        ----------
        num_pages
            Pages of each request, ``[X]``, int64, at least 0.

        Returns
        -------
        torch.Tensor
            ``[X]``, int64. The settings that bound budgets are applied to it by `BudgetTable`.
        """

    def allow(
        self, scores: torch.Tensor, num_pages: torch.Tensor, budget: torch.Tensor, limit: torch.Tensor
    ) -> torch.Tensor:
        """Pages that each KV head is to select in this step besides the always-selected ones; none by default.

        Parameters
        ----------
        scores
            ``[B, H, M]``, float32, ``-inf`` for pages that are always selected and those that do not exist.
        num_pages
            ``[B]``, int32.
        budget, limit
            ``[B]``, int32.

        Returns
        -------
        torch.Tensor
            ``[B, H]``, integer; with the always-selected pages it is kept between budget and limit by
            `rheo_kernels.reference.allow`.
        """
        return torch.zeros(scores.shape[:2], dtype=torch.int32, device=scores.device)

    @property
    def selects_all(self) -> bool:
        """Whether the budget is every page, however long a request is: then nothing need be selected."""
        return False

    @property
    def reads_scores(self) -> bool:
        """Whether `allow` is to be called."""
        return type(self).allow is not BudgetRule.allow


BUDGETS: Registry[BudgetRule] = Registry("budget", BudgetRule)
"""Budget rules by name."""
