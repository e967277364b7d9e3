"""DecodeBatch: what every layer of one decode step shares."""

from __future__ import annotations

from typing import NamedTuple

import torch


class DecodeBatch(NamedTuple):
    """One decode step's requests as pages; every field is ``[B]``, int32, except ``pages``. Padded rows are all 0."""

    pages: torch.Tensor
    """Page lists, ``[B, M]``; entries past ``num_pages`` are undefined."""
    num_pages: torch.Tensor
    seq_lens: torch.Tensor
    """Tokens, the new one included."""
    past: torch.Tensor
    """Tokens without the new one."""
    tail_pages: torch.Tensor
    """Page that receives the new token."""
    tail_offsets: torch.Tensor
    """Where in it."""
    filled: torch.Tensor
    """The tail page, if the new token completes it, else 0."""
    budget: torch.Tensor
    """Pages that every KV head of the request may select."""

    @classmethod
    def allocate(cls, batch: int, columns: int, device: torch.device | str) -> DecodeBatch:
        """Zeroed buffers for ``B`` requests of up to ``M`` pages."""
        rows = (torch.zeros(batch, dtype=torch.int32, device=device) for _ in range(7))
        return cls(torch.zeros((batch, columns), dtype=torch.int32, device=device), *rows)
