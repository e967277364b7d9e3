"""resolve: selected pages against the page table, into hit frames and missed pages."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Resolved(NamedTuple):
    """The selected pages of a batch, named physically. Every field is ``[B, H, S]``, int32."""

    pages: torch.Tensor
    """Logical page, -1 where nothing was selected."""
    hits: torch.Tensor
    """Frame of a resident page, else -1."""
    misses: torch.Tensor
    """Logical (= host) page of a page without a frame, else -1."""
    valid: torch.Tensor
    """Tokens of the page that belong to the request; 0 where nothing was selected."""


def resolve(
    selected: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    page_table: torch.Tensor,
    page_size: int,
) -> Resolved:
    """Look the selection up in one layer's page table.

    Parameters
    ----------
    selected
        Indices into each request's page list, ``[B, H, S]``, int32, -1 = none.
    pages
        Page lists, ``[B, M]``, int32.
    seq_lens
        Tokens of each request, ``[B]``.
    page_table
        One layer's page table, ``[H, N]``, int32, -1 = no frame.
    page_size
        Tokens per page.
    """
    chosen = selected >= 0
    index = selected.clamp(min=0).long()
    batch, heads, _ = selected.shape
    logical = pages[:, None].expand(batch, heads, -1).gather(2, index)
    frame = page_table.expand(batch, -1, -1).gather(2, logical.long())
    resident = chosen & (frame >= 0)
    valid = (seq_lens[:, None, None] - index * page_size).clamp(0, page_size).to(torch.int32)
    return Resolved(
        pages=logical.masked_fill(~chosen, -1),
        hits=frame.masked_fill(~resident, -1),
        misses=logical.masked_fill(~chosen | resident, -1),
        valid=valid.masked_fill(~chosen, 0),
    )
