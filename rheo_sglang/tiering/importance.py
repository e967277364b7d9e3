"""Keep the pages that attention has ranked highest, averaged over steps and requests."""

from __future__ import annotations

import torch

from rheo_kernels import reference
from rheo_sglang.tiering.base import POLICIES, PolicyInputs, Selection, TieringPolicy

IDLE_DECAY = 0.7
"""Factor per decode step on the value of a page that no running request lists: its rank in such a step is none.
Without it, pages of finished requests hold frames for as long as their prefixes are cached."""


@POLICIES.register
class Importance(TieringPolicy):
    """Worth is an exponential average of a page's rank among its request's pages, the best 1.

    Pages are ranked by score in a decode step, and by attention mass at the end of a prompt. On a GPU, ranking and
    averaging are one kernel, see `rheo_kernels.triton.update_importance`, whose docstring bounds the error of a rank.
    """

    name = "importance"
    idle_decay = IDLE_DECAY

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self.best_ranks = self.worth[0].to(torch.int32) if inputs.triton else None

    def on_prefill(
        self,
        layer: int,
        mass: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        caps: torch.Tensor,
    ) -> None:
        """See `TieringPolicy.on_prefill`; one step's rank, by mass."""
        self._update(layer, mass, pages, num_pages)

    def on_step(
        self,
        layer: int,
        scores: torch.Tensor,
        selected: Selection,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
    ) -> None:
        """See `TieringPolicy.on_step`."""
        self._update(layer, scores, pages, num_pages)

    def _update(self, layer: int, scores: torch.Tensor, pages: torch.Tensor, num_pages: torch.Tensor) -> None:
        alpha, worth = self.inputs.importance_alpha, self.worth[layer]
        if self.best_ranks is None:
            past = torch.arange(scores.shape[2], device=scores.device) >= num_pages[:, None, None]
            ranks = reference.rank_normalise(scores.masked_fill(past, -torch.inf), num_pages)
            reference.update_importance(worth, ranks, pages, num_pages, alpha)
        else:
            from rheo_kernels.triton import update_importance

            shared = self.best_ranks if scores.shape[0] > 1 else None
            update_importance(scores, pages, num_pages, alpha, worth, shared)
