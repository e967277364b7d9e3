"""Keep the pages that the next step is likeliest to select: ranked high by this one, and selected often of late."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.base import POLICIES
from rheo_sglang.tiering.ranking import Ranking

RANK_WEIGHT = 0.5
"""Of the latest rank, against that of the share of recent steps."""
USE_ALPHA = 0.1
"""Weight of the newest step in a page's share of recent steps that selected it."""


@POLICIES.register
class Predicted(Ranking):
    """Worth is the mean of a page's latest rank and the share of recent steps that used it, averaged exponentially.

    What was selected for long stays while it is ranked low for a step or two; what was nearly selected comes before
    what was selected once and is forgotten. docs/traces.md has what that is worth on traces.
    """

    name = "predicted"
    state_dtypes = (torch.float32,)
    rank_alpha = 1.0

    def value(
        self, ranks: torch.Tensor, used: torch.Tensor, states: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """See `Ranking.value`."""
        share = states[0].lerp(used.to(torch.float32), USE_ALPHA)
        return share.lerp(ranks, RANK_WEIGHT), [share]
