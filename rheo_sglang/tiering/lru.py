"""Keep the pages that were used most recently."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.base import POLICIES, PolicyInputs
from rheo_sglang.tiering.counting import SEEN, UNIT, Counting

FIRST = 2
"""Number of the step before the first one; below it are `SEEN` and nothing."""
LAST = 2**23
"""Greatest number of a step: its worth is 1."""
SHIFT = LAST // 2 - FIRST
"""Steps by which numbers fall when they reach `LAST`."""


@POLICIES.register
class LeastRecentlyUsed(Counting):
    """A page is worth the number of the step of its last use, times `UNIT`.

    Numbers end at `LAST`. When a step reaches it, all numbers fall by `SHIFT`, and those of pages last used more than
    2^22 steps ago become equal, the lowest ones.
    """

    name = "lru"

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self.offset = torch.full_like(self.activity.step, FIRST)
        self.last = LAST - FIRST

    def begin_step(self) -> None:
        """Renumber the steps, if this one would get a number above `LAST`."""
        while self.activity.steps > self.last:
            self.last += SHIFT
            self.offset -= SHIFT
            for worth in self.worth:
                shifted = (worth - SHIFT * UNIT).clamp(min=FIRST * UNIT)
                worth.copy_(torch.where(worth > SEEN, shifted, worth))

    def used(self, worth: torch.Tensor) -> torch.Tensor:
        """See `Counting.used`."""
        return ((self.activity.step + self.offset) * UNIT).expand_as(worth)
