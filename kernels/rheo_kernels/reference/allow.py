"""allow: pages that each request and KV head may select in this step, by a budget rule that looks at scores."""

from __future__ import annotations

from collections.abc import Callable

import torch


def allow(
    rule: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    scores: torch.Tensor,
    num_pages: torch.Tensor,
    caps: torch.Tensor,
    forced: int,
    dense_pages: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a rule between the pages that are always selected and the cap.

    The rule does not see the tail page's score: the page is selected whatever it is, and a GPU scores it before the new
    token has been folded into its summary.

    Parameters
    ----------
    rule
        ``(scores, num_pages, caps) -> [B, H]``; scores are ``-inf`` from the tail page on.
    scores
        ``[B, H, M]``, float32, ``-inf`` past the last page.
    num_pages
        ``[B]``, int32.
    caps
        Most pages each request and KV head may select, ``[B, H]``, int32.
    forced
        Pages that are selected whatever their scores.
    dense_pages
        Requests of up to so many pages select all that their cap has.
    out
        Result buffer, ``[B, H]``, int32.

    Returns
    -------
    torch.Tensor
        ``[B, H]``, int32.
    """
    least = torch.minimum(caps, torch.full_like(caps, forced))
    least = torch.where((num_pages <= dense_pages)[:, None], caps, least)
    position = torch.arange(scores.shape[2], device=scores.device)
    known = scores.masked_fill(position >= num_pages[:, None, None] - 1, -torch.inf)
    allowed = torch.minimum(torch.maximum(rule(known, num_pages, caps).to(torch.int32), least), caps)
    return allowed if out is None else out.copy_(allowed)
