"""Selector: from queries to selected pages, per request and KV head."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from rheo_kernels import reference
from rheo_kernels.reference import allow, favour, log_shares, score, select
from rheo_kernels.types import Corrections, DecodeBatch, Growth, ResidencyBonus
from rheo_kernels.types.subcentroids import SubcentroidLayout
from rheo_kernels.types.summary import EstimatingSummary, PageSummary, ScoringSummary
from rheo_sglang.budget import BudgetTable

Estimate = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float, SubcentroidLayout], torch.Tensor
]
"""Takes and returns what `rheo_kernels.reference.estimate` does."""


class Selection(NamedTuple):
    """What one layer's selector decided.

    Attributes
    ----------
    scores
        Of every page, ``[B, H, M]``, float32, ``-inf`` past the last page, without a bonus.
    selected
        Indices into the page lists, ``[B, H, S]``, int32, -1 = none.
    lse
        Estimates that the scores are made of, ``[B, Hq, M]``, float32; None where the summary estimates nothing.
    """

    scores: torch.Tensor
    selected: torch.Tensor
    lse: torch.Tensor | None


class Selector:
    """Scores pages by their summaries and takes sinks, window and the best of the rest.

    Parameters
    ----------
    summary
        Kind of the summaries, which decides the score.
    page_size
        Tokens per page.
    grouping
        ``"mean"`` or ``"max"`` over the GQA group, of scores that are no estimates.
    sink_pages, window_pages
        First and last pages, always selected.
    budget
        Knows whether scores may raise a batch's budgets, and the rule; None where they may not.
    estimate
        Kernel that estimates, where the summary does.
    residency_bonus
        By how much pages that have a frame are preferred, in nats; 0: not at all.
    """

    def __init__(
        self,
        summary: PageSummary,
        page_size: int,
        grouping: str,
        sink_pages: int,
        window_pages: int,
        budget: BudgetTable | None = None,
        estimate: Estimate = reference.estimate,
        residency_bonus: float = 0.0,
    ) -> None:
        self.summary = summary
        self.page_size = page_size
        self.grouping = grouping
        self.sink_pages = sink_pages
        self.window_pages = window_pages
        self.budget = budget
        self.estimate = estimate
        self.residency_bonus = residency_bonus

    def __call__(
        self,
        q: torch.Tensor,
        summaries: torch.Tensor,
        batch: DecodeBatch,
        width: int,
        scale: float,
        growth: Growth | None = None,
        page_table: torch.Tensor | None = None,
        corrections: torch.Tensor | None = None,
    ) -> Selection:
        """Select one layer's pages, up to ``width`` of each request and KV head.

        Parameters
        ----------
        q
            Queries, ``[B, Hq, D]``.
        summaries
            One layer's summaries, ``[H, N, R, W]``; of tokens before the step's, at least.
        batch
            The requests.
        width
            ``S``.
        scale
            Softmax scale.
        growth
            Counters of budgets that grew.
        page_table
            The layer's page table, ``[H, N]``, int32; with a bonus.
        corrections
            The layer's, of all rows of the token table, ``[R, H, M]``, int8.
        """
        scores, lse = self._score(q, summaries, batch, scale, corrections)
        budget = batch.budget[:, None].expand(-1, summaries.shape[0])
        if self.budget is not None and self.budget.reads_scores:
            rule = self.budget.rule.allow if self.budget.rule.reads_scores else None
            bounds = batch.num_pages, batch.budget, batch.limit, batch.floor
            budget = allow(rule, scores, *bounds, self.sink_pages, self.window_pages, growth)
        ranked = scores
        if self.residency_bonus:
            assert page_table is not None
            bonus = ResidencyBonus(self.residency_bonus, batch.floor)
            ranked = favour(scores, batch.pages, batch.num_pages, page_table, bonus)
        selected = select(ranked, batch.num_pages, budget, self.sink_pages, self.window_pages, width)
        return Selection(scores, selected, lse)

    def _score(
        self,
        q: torch.Tensor,
        summaries: torch.Tensor,
        batch: DecodeBatch,
        scale: float,
        corrections: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores, and the estimates that they are made of, if any: of the tokens before this step's."""
        if isinstance(self.summary, EstimatingSummary):
            layout = self.summary.layout(q.shape[2], self.page_size)
            lse = self.estimate(q, summaries[:, :, 0], batch.pages, batch.past, scale, layout)
            added = None if corrections is None else Corrections(corrections, batch.rows)
            return log_shares(lse, batch.num_pages, summaries.shape[0], added), lse
        assert isinstance(self.summary, ScoringSummary)
        pages, counts = batch.pages, batch.num_pages
        return score(q, self.summary, summaries, pages, counts, scale, self.grouping), None
