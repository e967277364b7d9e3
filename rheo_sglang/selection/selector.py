"""Selector: from queries to selected pages, per request and KV head."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.reference import score, select
from rheo_sglang.config import RheoConfig


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

    The kind of summary decides the score: bounding boxes give Quest's bound (arXiv:2406.10774), averages the
    logit of the mean key.
    """

    def __init__(self, config: RheoConfig) -> None:
        self.grouping = config.grouping
        self.sink_pages = config.sink_pages
        self.window_pages = config.window_pages

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
        scores = score(q, summaries, pages, num_pages, scale, self.grouping)
        selected = select(scores, num_pages, budget, self.sink_pages, self.window_pages, width)
        return Selection(scores, selected)
