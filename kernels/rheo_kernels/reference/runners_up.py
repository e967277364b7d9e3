"""runners_up: the pages without a frame that came next to those selected."""

from __future__ import annotations

import torch

from rheo_kernels.types import RunnersUp


def runners_up(
    scores: torch.Tensor,
    selected: torch.Tensor,
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    page_table: torch.Tensor,
    most: int,
) -> RunnersUp:
    """List the pages without a frame among the best-scored ones that a selection left out.

    Parameters
    ----------
    scores
        Page scores, ``[B, H, M]``, float32.
    selected
        Indices into the request's page list, ``[B, H, S]``, int32, -1 = none; see `select`.
    pages
        Page lists, ``[B, M]``, int32.
    num_pages
        Pages of each request, ``[B]``, int32.
    page_table
        One layer's page table, ``[H, N]``, int32, negative = no frame.
    most
        How many of the best ones are looked at, those with a frame included: ``R`` columns.

    Returns
    -------
    RunnersUp
        Best first. A kernel may look at fewer.
    """
    batch, heads, width = scores.shape
    position = torch.arange(width, device=scores.device)
    taken = torch.zeros((batch, heads, width + 1), dtype=torch.bool, device=scores.device)
    taken.scatter_(2, selected.long() + 1, True)
    taken = taken[:, :, 1:] | (position >= num_pages[:, None, None])
    k = min(most, width)
    best = scores.masked_fill(taken, -torch.inf).topk(k, dim=2).indices
    left_out = ~taken.gather(2, best)
    page = pages[:, None].expand(-1, heads, -1).gather(2, best)
    frame = page_table.expand(batch, -1, -1).gather(2, page.long().masked_fill(~left_out, 0))
    missing = left_out & (frame < 0)
    order = (~missing).to(torch.int8).argsort(dim=2, stable=True)
    found = page.masked_fill(~missing, -1).gather(2, order)
    found = torch.nn.functional.pad(found, (0, most - k), value=-1)
    return RunnersUp(found, missing.sum(2, dtype=torch.int32))
