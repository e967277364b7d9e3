"""allow: pages that each request and KV head may select in this step, by a budget rule and by a floor of coverage."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rheo_kernels.reference.cover import cover
from rheo_kernels.types import Growth

Rule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def allow(
    rule: Rule | None,
    scores: torch.Tensor,
    num_pages: torch.Tensor,
    budget: torch.Tensor,
    limit: torch.Tensor,
    floor: torch.Tensor,
    sink_pages: int,
    window_pages: int,
    growth: Growth | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The pages that a rule wants and those that a floor needs, whichever are more, between budget and limit.

    Neither sees the scores of pages that are always selected: that of the tail page may be of a summary that is being
    written.

    Parameters
    ----------
    rule
        ``(scores, num_pages, budget, limit) -> [B, H]``: how many pages besides those that are always selected; scores
        are ``-inf`` for these. None wants none.
    scores
        ``[B, H, M]``, float32, ``-inf`` past the last page; with a floor, logarithms of shares of the attention.
    num_pages
        ``[B]``, int32.
    budget, limit
        Pages that every KV head may select, and the most to which a rule or floor may raise that, ``[B]``, int32.
    floor
        Share of the estimated attention that selected pages hold, `cover`'s, ``[B]``, float32; at most 0 for none.
    sink_pages, window_pages
        Always-selected pages; at least the tail page.
    growth
        Counters; what is allowed beyond the budget is added.
    out
        Result buffer, ``[B, H]``, int32.

    Returns
    -------
    torch.Tensor
        ``[B, H]``, int32.
    """
    position = torch.arange(scores.shape[2], device=scores.device)
    count = num_pages[:, None]
    free = (position >= sink_pages) & (position < count - max(window_pages, 1))
    known = scores.masked_fill(~free[:, None], -torch.inf)
    forced = count - free.sum(1, dtype=torch.int32)[:, None]
    wanted = forced + cover(known, floor)
    if rule is not None:
        wanted = torch.maximum(wanted, forced + rule(known, num_pages, budget, limit).to(torch.int32))
    allowed = torch.minimum(torch.maximum(wanted, budget[:, None]), limit[:, None])
    if growth is not None:
        grown = allowed - budget[:, None]
        growth.samples[growth.slots] += grown > 0
        growth.pages[growth.slots] += grown
    return allowed if out is None else out.copy_(allowed)
