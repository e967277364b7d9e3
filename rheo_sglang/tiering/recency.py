"""Keep the pages that attention ranks high on average and that were used recently, by weights."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.base import POLICIES
from rheo_sglang.tiering.ranking import Ranking

IMPORTANCE_WEIGHT = 0.5
"""Of the average rank, against that of recency."""
STEP_DECAY = 0.9
"""Factor on a page's recency for every step that lists it without using it."""


@POLICIES.register
class ImportanceAndRecency(Ranking):
    """Worth is a weighted mean of importance (`Importance`) and recency, which is 1 in a step that uses a page."""

    name = "recency"
    state_dtypes = (torch.float32,)

    @property
    def rank_alpha(self) -> float:
        """The setting ``importance_alpha``."""
        return self.inputs.importance_alpha

    @property
    def prompt_alpha(self) -> float:
        """See `Ranking.prompt_alpha`."""
        return self.inputs.prompt_alpha

    def value(
        self, ranks: torch.Tensor, used: torch.Tensor, states: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """See `Ranking.value`."""
        recency = torch.where(used, 1.0, states[0] * STEP_DECAY)
        return recency.lerp(ranks, IMPORTANCE_WEIGHT), [recency]
