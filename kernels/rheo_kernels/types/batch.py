"""DecodeBatch: what every layer of one decode step shares."""

from __future__ import annotations

from typing import NamedTuple

import torch


class DecodeBatch(NamedTuple):
    """One decode step's requests as pages; every field but ``pages`` is ``[B]``, int32 where no dtype is said.

    Padded rows are all 0.
    """

    pages: torch.Tensor
    """Page lists, ``[B, M]``; entries past ``num_pages`` are undefined."""
    rows: torch.Tensor
    """Rows of SGLang's token table."""
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
    """Pages that every KV head of the request may select in any step."""
    limit: torch.Tensor
    """The most to which scores may let that grow; at least ``budget``."""
    floor: torch.Tensor
    """Share of the estimated attention that the selected pages should hold, float32; 0 for no floor, 1 after a margin
    below the request's level."""

    @classmethod
    def allocate(cls, batch: int, columns: int, device: torch.device | str) -> DecodeBatch:
        """Zeroed buffers for ``B`` requests of up to ``M`` pages."""
        integers = {
            name: torch.zeros(batch, dtype=torch.int32, device=device)
            for name in cls._fields
            if name not in ("pages", "floor")
        }
        pages = torch.zeros((batch, columns), dtype=torch.int32, device=device)
        return cls(pages, **integers, floor=torch.zeros(batch, dtype=torch.float32, device=device))
