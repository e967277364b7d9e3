"""runners_up: the pages that came next to those selected."""

from __future__ import annotations

import torch


def runners_up(
    scores: torch.Tensor, selected: torch.Tensor, num_pages: torch.Tensor, most: int
) -> torch.Tensor:
    """List the best-scored pages that a selection left out.

    Parameters
    ----------
    scores
        Page scores, ``[B, H, M]``, float32.
    selected
        Indices into the request's page list, ``[B, H, S]``, int32, -1 = none; see `select`.
    num_pages
        Pages of each request, ``[B]``, int32.
    most
        ``R``: columns of the result.

    Returns
    -------
    torch.Tensor
        Indices into the request's page list, ``[B, H, R]``, int32, best first, then ``-1``.
    """
    width = scores.shape[2]
    position = torch.arange(width, device=scores.device)
    taken = torch.zeros((*scores.shape[:2], width + 1), dtype=torch.bool, device=scores.device)
    taken.scatter_(2, selected.long() + 1, True)
    taken = taken[:, :, 1:] | (position >= num_pages[:, None, None])
    k = min(most, width)
    best = scores.masked_fill(taken, -torch.inf).topk(k, dim=2).indices.to(torch.int32)
    best.masked_fill_(taken.gather(2, best.long()), -1)
    return torch.nn.functional.pad(best, (0, most - k), value=-1)
