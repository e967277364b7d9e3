"""Keep the pages that were used most often."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.base import POLICIES, PolicyInputs
from rheo_sglang.tiering.counting import SEEN, UNIT, Counting

USE = 2 * UNIT
"""Worth of one use."""
MOST_USES = 2**22
"""Uses at which worth is 1."""


@POLICIES.register
class LeastFrequentlyUsed(Counting):
    """A page is worth the number of its uses, times `USE`.

    No page has more uses than there were steps and prompts, which the host counts. When those may be `MOST_USES`, all
    counts are halved, rounded up.
    """

    name = "lfu"

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self.most_uses = 0

    def begin_step(self) -> None:
        """Halve all counts, if this step could bring one above `MOST_USES`."""
        self._expect_use()

    def on_prefill(
        self,
        layer: int,
        mass: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        caps: torch.Tensor,
    ) -> None:
        """See `Counting.on_prefill`."""
        if layer == 0:
            self._expect_use()
        super().on_prefill(layer, mass, pages, num_pages, caps)

    def used(self, worth: torch.Tensor) -> torch.Tensor:
        """See `Counting.used`."""
        return (worth / USE).floor() * USE + USE

    def _expect_use(self) -> None:
        if self.most_uses == MOST_USES:
            self.most_uses //= 2
            for worth in self.worth:
                halved = (worth / (2 * USE)).ceil() * USE
                worth.copy_(torch.where(worth > SEEN, halved, worth))
        self.most_uses += 1
