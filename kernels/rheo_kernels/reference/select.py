"""select: sink, window and the best-scored rest of each request's pages, per KV head."""

from __future__ import annotations

import torch


def select(
    scores: torch.Tensor,
    num_pages: torch.Tensor,
    budget: torch.Tensor,
    sink_pages: int,
    window_pages: int,
    width: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Choose at most ``budget`` pages per request and KV head.

    The first ``sink_pages`` and the last ``window_pages`` (at least the tail page) are always selected, even
    where they exceed the budget; the rest of the budget goes to the highest scores. NaN counts as the infinity of its
    sign, and no score comes before an always-selected page. Of equal scores, the earlier page comes first.

    Parameters
    ----------
    scores
        Page scores, ``[B, H, M]``, float32, ``-inf`` past the last page.
    num_pages
        Pages of each request, ``[B]``, int32.
    budget
        Pages each request and KV head may select, ``[B, H]``, int32.
    sink_pages, window_pages
        Always-selected pages at the start and at the end.
    width
        ``S``: columns of the result, no smaller than any request's selection.
    out
        Result buffer, ``[B, H, S]``, int32.

    Returns
    -------
    torch.Tensor
        Indices into the request's page list, ``[B, H, S]``, int32, best first, then ``-1``.
    """
    position = torch.arange(scores.shape[2], device=scores.device)
    last = num_pages[:, None]
    forced = (position < sink_pages) | (position >= last - max(window_pages, 1))
    forced &= position < last
    count = torch.maximum(budget, forced.sum(1, dtype=torch.int32)[:, None])
    count = torch.minimum(count, num_pages[:, None])
    finite = torch.finfo(scores.dtype)
    keyed = torch.where(scores.isnan(), torch.full_like(scores, torch.inf).copysign(scores), scores)
    keyed = keyed.clamp(finite.min, finite.max).masked_fill((position >= last)[:, None], -torch.inf)
    keyed = keyed.masked_fill(forced[:, None], torch.inf)
    k = min(width, scores.shape[2])
    best = keyed.sort(dim=2, descending=True, stable=True).indices[:, :, :k].to(torch.int32)
    best.masked_fill_(torch.arange(k, device=scores.device) >= count[:, :, None], -1)
    if out is None:
        out = torch.empty((*scores.shape[:2], width), dtype=torch.int32, device=scores.device)
    out.fill_(-1)
    out[:, :, :k] = best
    return out
