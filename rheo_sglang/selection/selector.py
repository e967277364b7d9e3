"""Selector: from queries to selected pages, per request and KV head."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.reference import score, select
from rheo_kernels.types.summary import PageSummary


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
    """

    def __init__(self, summary: PageSummary, grouping: str, sink_pages: int, window_pages: int) -> None:
        self.summary = summary
        self.grouping = grouping
        self.sink_pages = sink_pages
        self.window_pages = window_pages

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
        selected = select(scores, num_pages, budget, self.sink_pages, self.window_pages, width)
        return Selection(scores, selected)
