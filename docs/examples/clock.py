"""clock: generalised CLOCK (Smith, 1978): uses fill a small counter of each page, and time drains it.

Pages that are used in every turn of the clock keep a full counter; one that is used often and then no more leaves after
a few turns, which LFU would keep, and one that is used once leaves before them, which LRU would keep.
"""

import torch

from rheo_sglang.tiering import POLICIES
from rheo_sglang.tiering.counting import Counting

COUNT = 0.25
"""Worth of one use: a counter that is full, 1.0, holds four."""
TURN_STEPS = 32
"""Decode steps after which every counter loses one use."""


@POLICIES.register
class Clock(Counting):
    """A page is worth its uses, up to four, less one for every turn of the clock."""

    name = "clock"

    def begin_step(self) -> None:
        """Turn the clock, outside the step's graph and by the host's count of steps."""
        if self.activity.steps % TURN_STEPS == 0:
            self.worth.sub_(COUNT).clamp_(min=0.0)

    def used(self, worth: torch.Tensor) -> torch.Tensor:
        """One use more, in a decode step or by a prompt's last tokens."""
        return (worth + COUNT).clamp(max=1.0)
