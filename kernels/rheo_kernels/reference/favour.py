"""favour: the scores by which pages are ranked for a selection, where those that have a frame get a bonus."""

from __future__ import annotations

import torch

from rheo_kernels.types import ResidencyBonus


def favour(
    scores: torch.Tensor,
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    page_table: torch.Tensor,
    bonus: ResidencyBonus,
) -> torch.Tensor:
    """Add the bonus to the scores of pages that have a frame, for `select` to rank.

    Where scores are logarithms of shares, every page that a selection leaves out because of the bonus has less than
    ``exp(bonus)`` times the share of each page with a frame that it takes by its own score: all that is left out has at
    most ``exp(bonus)`` times the share that it would have without a bonus.

    Parameters
    ----------
    scores
        Page scores, ``[B, H, M]``, float32.
    pages
        Page lists, ``[B, M]``, int32.
    num_pages
        Pages of each request, ``[B]``, int32.
    page_table
        One layer's page table, ``[H, N]``, int32, negative = no frame.
    bonus
        How much, and the floors of the requests: those with one keep their scores. So do pages whose score is NaN, bit
        by bit, as rankings tell NaN apart by it.

    Returns
    -------
    torch.Tensor
        ``[B, H, M]``, float32, a new tensor: whatever else reads scores is to read the others.
    """
    batch, heads, columns = scores.shape
    exists = torch.arange(columns, device=scores.device) < num_pages[:, None]
    listed = pages.long().masked_fill(~exists, 0)[:, None].expand(-1, heads, -1)
    resident = (page_table.expand(batch, -1, -1).gather(2, listed) >= 0) & exists[:, None]
    given = resident & (bonus.floors <= 0)[:, None, None] & ~scores.isnan()
    return torch.where(given, scores + bonus.nats, scores)
