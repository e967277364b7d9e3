"""BudgetController: pages per request and KV head."""

from __future__ import annotations

import math

import torch

from rheo_sglang.config import RheoConfig

MOST_PAGES = 2**31 - 1
"""No bound: more pages than a request can have."""


class BudgetController:
    """A fixed share of each request's pages, within bounds; short requests select everything."""

    def __init__(self, config: RheoConfig, kv_heads: int, page_size: int) -> None:
        self.config = config
        self.kv_heads = kv_heads
        self.page_size = page_size
        self.most = config.budget_max_pages if config.budget_max_pages is not None else MOST_PAGES

    @property
    def dense_tokens(self) -> int:
        """Requests up to this many tokens select all their pages."""
        return self.config.dense_tokens

    def budget(self, num_pages: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
        """Pages that each request and KV head may select.

        Parameters
        ----------
        num_pages, seq_lens
            Pages and tokens of each request, ``[B]``.

        Returns
        -------
        torch.Tensor
            ``[B, H]``, int32, between 1 and the request's pages.
        """
        config = self.config
        share = (num_pages.double() * config.budget_ratio).ceil().to(torch.int32)
        share = share.clamp(config.budget_min_pages, self.most)
        share = torch.where(seq_lens <= self.dense_tokens, num_pages, torch.minimum(share, num_pages))
        return share.to(torch.int32)[:, None].expand(-1, self.kv_heads)

    def width(self, max_seq_len: int) -> int:
        """``S``: the widest selection that a batch whose longest request has ``max_seq_len`` tokens can make."""
        pages = -(-max_seq_len // self.page_size)
        config = self.config
        dense = -(-min(max_seq_len, self.dense_tokens) // self.page_size)
        share = min(max(math.ceil(pages * config.budget_ratio), config.budget_min_pages), self.most)
        forced = config.sink_pages + config.window_pages
        return min(pages, max(dense, share, forced))
