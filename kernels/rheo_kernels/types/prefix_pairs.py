"""PrefixPairs: requests of a batch that begin with the same pages, two by two."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PrefixPairs(NamedTuple):
    """Requests whose first pages are the same ones, so that what is read of these serves both.

    A request is in one pair at most.
    """

    partner: torch.Tensor
    """The other request, ``[B]``, int32; -1 where there is none."""
    units: torch.Tensor
    """Leading units of `PAGES_PER_BLOCK` pages that both list, all of their tokens present, ``[B]``, int32; 0 without a
    partner."""

    @classmethod
    def allocate(cls, batch: int, device: torch.device | str) -> PrefixPairs:
        """For ``batch`` requests, none of them in a pair."""
        pairs = cls(*(torch.empty(batch, dtype=torch.int32, device=device) for _ in cls._fields))
        pairs.clear()
        return pairs

    def clear(self) -> None:
        """Leave every request alone."""
        self.partner.fill_(-1)
        self.units.zero_()

    def views(self, batch: int) -> PrefixPairs:
        """Those of the first ``batch`` requests."""
        return PrefixPairs(*(field[:batch] for field in self))
