"""Keep the pages that were among the best in most of the last steps: a sliding window."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.base import POLICIES
from rheo_sglang.tiering.ranking import Ranking

STEPS = 31
"""Steps of the window: bits of an int32 without its sign."""
TOP = 0.2
"""Share of a request's pages that counts as the best."""
ROUNDING = 1e-4
"""Ranks are quotients of small numbers; one that is exactly at the border is below it, whoever divides."""


@POLICIES.register
class SlidingWindow(Ranking):
    """Worth is the share of the last `STEPS` steps that ranked a page among the best `TOP` of its request's.

    The latest rank decides between pages of equal share: it counts as a part of one step more.
    """

    name = "window"
    state_dtypes = (torch.int32,)
    rank_alpha = 1.0

    def value(
        self, ranks: torch.Tensor, used: torch.Tensor, states: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """See `Ranking.value`; each bit of the state is a step, the lowest the newest."""
        history = ((states[0] << 1) & (2**STEPS - 1)) | (ranks > 1 - TOP + ROUNDING).to(torch.int32)
        return (_ones(history) + ranks) / (STEPS + 1), [history]


def _ones(bits: torch.Tensor) -> torch.Tensor:
    """Bits that are set, added up in fields of 2, 4, 8 bits and so on; not negative, int32."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits = bits + (bits >> 8)
    return (bits + (bits >> 16)) & 0x3F
