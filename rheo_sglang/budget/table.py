"""BudgetTable: the most pages that a request may select, for every number of pages that it can have."""

from __future__ import annotations

import torch

from rheo_sglang.budget.base import BudgetRule


class BudgetTable:
    """A rule's caps within the bounds that settings give, computed once.

    The batch's description on CPU and GPU and the widths of selections all read ``caps``. A request of up to
    ``dense_tokens``, rounded up to whole pages, selects all of them. Any other one selects at least ``least`` and the
    pages that are always selected, at most ``most`` unless those are more, and never more than it has.

    Parameters
    ----------
    rule
        Budget rule.
    max_pages
        Pages of the longest request.
    page_size
        Tokens per page.
    least, most
        Bounds of the cap, in pages; ``most`` may be None.
    forced
        Pages that are always selected: sinks and window.
    dense_tokens
        Tokens up to which a request selects all its pages.
    device
        Where ``caps`` lives.

    Attributes
    ----------
    caps
        ``[max_pages + 1]``, int32.
    dense_pages
        ``dense_tokens`` in pages.
    """

    def __init__(
        self,
        rule: BudgetRule,
        max_pages: int,
        page_size: int,
        least: int = 1,
        most: int | None = None,
        forced: int = 1,
        dense_tokens: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.rule = rule
        self.max_pages = max_pages
        self.page_size = page_size
        self.forced = forced
        self.dense_pages = -(-dense_tokens // page_size)
        pages = torch.arange(max_pages + 1)
        caps = rule.cap(pages).clamp(min=least, max=most).clamp(min=forced)
        caps = torch.where(pages <= self.dense_pages, pages, torch.minimum(caps, pages)).to(torch.int32)
        self.caps = caps.to(device)
        self._widest = caps.cummax(0).values.tolist()

    def width(self, pages: int) -> int:
        """``S``: the widest selection of a batch whose longest request has ``pages`` pages."""
        return self._widest[pages]
