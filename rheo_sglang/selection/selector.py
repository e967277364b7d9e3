"""Selector: from queries to selected pages, per request and KV head."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.reference import allow, score, select
from rheo_kernels.types.summary import PageSummary
from rheo_sglang.budget import BudgetRule


class Selection(NamedTuple):
    """What one layer's selector decided.

    Attributes
    ----------
    scores
        Of every page, ``[B, H, M]``, float32, ``-inf`` past the last page.
    selected
        Indices into the page lists, ``[B, H, S]``, int32, -1 = none.
    """

    scores: torch.Tensor
    selected: torch.Tensor


class Selector:
    """Scores pages by their summaries and takes sinks, window and the best of the rest.

    Parameters
    ----------
    summary
        Kind of the summaries, which decides the score.
    grouping
        ``"mean"`` or ``"max"`` over the GQA group.
    sink_pages, window_pages
        First and last pages, always selected.
    rule
        Budget rule, which may allow less than the budgets where it reads scores; None for one that does not.
    dense_pages
        Requests of up to so many pages select all, whatever the rule.
    """

    def __init__(
        self,
        summary: PageSummary,
        grouping: str,
        sink_pages: int,
        window_pages: int,
        rule: BudgetRule | None = None,
        dense_pages: int = 0,
    ) -> None:
        self.summary = summary
        self.grouping = grouping
        self.sink_pages = sink_pages
        self.window_pages = window_pages
        self.rule = rule
        self.dense_pages = dense_pages

    def __call__(
        self,
        q: torch.Tensor,
        summaries: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        budget: torch.Tensor,
        width: int,
        scale: float,
    ) -> Selection:
        """Select one layer's pages; see `rheo_kernels.reference.score` and ``select`` for shapes."""
        scores = score(q, self.summary, summaries, pages, num_pages, scale, self.grouping)
        if self.rule is not None and self.rule.reads_scores:
            forced = self.sink_pages + self.window_pages
            budget = allow(self.rule.allow, scores, num_pages, budget, forced, self.dense_pages)
        selected = select(scores, num_pages, budget, self.sink_pages, self.window_pages, width)
        return Selection(scores, selected)
