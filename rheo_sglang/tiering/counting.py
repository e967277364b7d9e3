"""What LRU and LFU share: a worth that every use of a page raises, in a decode step or by a prompt's last tokens."""

from __future__ import annotations

from abc import abstractmethod

import torch

from rheo_sglang.tiering.base import Selection, TieringPolicy, most_attended

UNIT = 2.0**-23
"""float32 tells multiples of it apart below 1 and, with `SELECTED` added, between 1 and 2."""
SEEN = UNIT
"""Worth of a page of a prompt whose last tokens did not use it: less than one use, more than nothing."""


class Counting(TieringPolicy):
    """A policy whose worth changes when a page is used, and only then.

    A decode step uses the pages that it selects. The end of a prompt uses those that its last tokens attended most, as
    many as the budget lets a decode step select; its other pages become worth `SEEN`, if they were worth nothing.
    """

    @abstractmethod
    def used(self, worth: torch.Tensor) -> torch.Tensor:
        """Worth of pages after one more use, from the one before it; same shape."""
        ...

    def on_prefill(
        self,
        layer: int,
        mass: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        caps: torch.Tensor,
    ) -> None:
        """See `TieringPolicy.on_prefill`; a page that several prompts used counts once."""
        _, heads, columns = mass.shape
        listed = torch.arange(columns, device=pages.device) < num_pages[:, None]
        index = pages.long().where(listed, 0).flatten().expand(heads, -1)
        before = self.worth[layer].gather(1, index)
        used = most_attended(mass, caps).transpose(0, 1).flatten(1)
        after = torch.where(used, self.used(before), before.clamp(min=SEEN))
        after = after.where(listed.flatten(), 0.0)
        self.worth[layer].scatter_reduce_(1, index, after, "amax")

    def on_step(
        self,
        layer: int,
        scores: torch.Tensor,
        selected: Selection,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
    ) -> None:
        """See `TieringPolicy.on_step`; a page that several requests selected counts once."""
        flat = selected.pages.transpose(0, 1).flatten(1)
        index = flat.clamp(min=0).long()
        used = self.used(self.worth[layer].gather(1, index))
        self.worth[layer].scatter_(1, index, used.masked_fill(flat < 0, 0.0))
