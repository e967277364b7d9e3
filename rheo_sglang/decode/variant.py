"""Variant: one of the fixed shapes that the decode path has kernels launched, and graphs captured, for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rheo_sglang.budget import BudgetTable

GROWTH = 4
"""Each variant serves contexts this many times as long as the one before it."""


class Variant(NamedTuple):
    """A shape of the decode step.

    Attributes
    ----------
    columns
        ``M``: pages of the longest request that it serves.
    width
        ``S``: columns of the selection; 0 for the dense shortcut, which selects nothing.
    """

    columns: int
    width: int

    @property
    def dense(self) -> bool:
        """Whether every request attends all of its pages."""
        return self.width == 0

    def __str__(self) -> str:
        return f"{'dense' if self.dense else 'sparse'}-{self.columns}"


def make_variants(budget: BudgetTable) -> list[Variant]:
    """Variants for every context that the budgets are for, the least work first.

    The dense shortcut comes first, where there is one: it serves batches of requests that all select everything. A
    selection is still needed now and then, for what admits pages that have no frame.
    """
    most = budget.max_pages
    columns = [256]
    while columns[-1] < most:
        columns.append(columns[-1] * GROWTH)
    columns[-1] = most
    dense = min(budget.dense_pages, most)
    variants = [Variant(width, 0) for width in columns if width < dense]
    if dense:
        variants.append(Variant(dense, 0))
    return variants + [Variant(width, budget.width(width)) for width in columns]


def pick_variant(variants: Sequence[Variant], pages: int, dense: bool) -> Variant:
    """The first variant that serves requests of up to ``pages`` pages, the dense shortcut only if allowed."""
    return next(variant for variant in variants if variant.columns >= pages and (dense or not variant.dense))
