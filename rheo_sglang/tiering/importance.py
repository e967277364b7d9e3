"""Keep the pages that attention has ranked highest, averaged over steps and requests."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.base import POLICIES, PolicyInputs, Selection, TieringPolicy
from rheo_sglang.tiering.ranks import IDLE_DECAY, RankAverage


@POLICIES.register
class Importance(TieringPolicy):
    """Worth is an exponential average of a page's rank among its request's pages, the best 1.

    Pages are ranked by score in a decode step, and by attention mass at the end of a prompt.
    """

    name = "importance"
    idle_decay = IDLE_DECAY

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self.ranks = RankAverage(self.worth, inputs.triton)

    def on_prefill(
        self,
        layer: int,
        mass: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        caps: torch.Tensor,
    ) -> None:
        """See `TieringPolicy.on_prefill`; one rank, by mass."""
        self._rank(layer, mass, pages, num_pages, self.inputs.prompt_alpha)

    def on_step(
        self,
        layer: int,
        scores: torch.Tensor,
        selected: Selection,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
    ) -> None:
        """See `TieringPolicy.on_step`."""
        self._rank(layer, scores, pages, num_pages, self.inputs.importance_alpha)

    def _rank(
        self, layer: int, scores: torch.Tensor, pages: torch.Tensor, num_pages: torch.Tensor, alpha: float
    ) -> None:
        self.ranks.update(layer, scores, pages, num_pages, alpha, self.inputs.first_alpha)
