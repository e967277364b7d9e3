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

    The cap of a request follows from its number of pages, in whole numbers, once for every length (`BudgetTable`). A
    rule that looks at scores allows a (request, KV head) fewer pages than that, in every step anew.

    Parameters
    ----------
    ratio
        The setting ``budget_ratio``, exactly the decimal that was written.

    Attributes
    ----------
    name
        Value of the setting ``budget``.
    allow_kernel
        What `allow` computes, as a Triton device function (``@triton.jit``), for rules that look at scores:
        ``(scores, num_pages, cap) -> int32`` for one (request, KV head); ``scores`` is ``[BLOCK_M]``, float32, ``-inf``
        from the tail page on, the other two are scalars.
    """

    name: ClassVar[str]
    allow_kernel: ClassVar[Any] = None

    def __init__(self, ratio: Fraction) -> None:
        if self.allow_kernel is not None and not self.reads_scores:
            reject(
                "budget", self.name, f"rules whose allow_kernel has an allow ({type(self).__name__} has none)"
            )
        self.ratio = ratio

    @abstractmethod
    def cap(self, num_pages: torch.Tensor) -> torch.Tensor:
        """Most pages that requests may select.

        Parameters
        ----------
        num_pages
            Pages of each request, ``[X]``, int64, at least 0.

        Returns
        -------
        torch.Tensor
            ``[X]``, int64. The settings that bound budgets are applied to it by `BudgetTable`.
        """

    def allow(self, scores: torch.Tensor, num_pages: torch.Tensor, caps: torch.Tensor) -> torch.Tensor:
        """Pages that each KV head may select in this step, given its scores; the cap, unless a rule overrides it.

        Parameters
        ----------
        scores
            ``[B, H, M]``, float32, ``-inf`` from the tail page on, which is selected whatever its score.
        num_pages
            ``[B]``, int32.
        caps
            ``[B, H]``, int32.

        Returns
        -------
        torch.Tensor
            ``[B, H]``, int32; whoever calls keeps it between the pages that are always selected and the cap.
        """
        return caps

    @property
    def selects_all(self) -> bool:
        """Whether the cap is every page, however long a request is: then nothing need be selected."""
        return False

    @property
    def reads_scores(self) -> bool:
        """Whether `allow` is to be called."""
        return type(self).allow is not BudgetRule.allow


BUDGETS: Registry[BudgetRule] = Registry("budget")
"""Budget rules by name."""
