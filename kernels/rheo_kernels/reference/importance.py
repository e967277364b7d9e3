"""importance: an exponential average of how high attention ranked each page."""

from __future__ import annotations

import torch


def rank_normalise(scores: torch.Tensor, num_pages: torch.Tensor) -> torch.Tensor:
    """Ranks of the scores within each request and KV head, scaled to (0, 1].

    Parameters
    ----------
    scores
        ``[B, H, M]``, float32, ``-inf`` past the last page.
    num_pages
        Pages of each request, ``[B]``, int32.

    Returns
    -------
    torch.Tensor
        ``[B, H, M]``, float32: the best page has 1, the worst ``1 / num_pages``. Past the last page the value
        is meaningless.
    """
    order = scores.argsort(dim=2, descending=True)
    place = torch.arange(scores.shape[2], device=scores.device, dtype=torch.float32).expand_as(scores)
    rank = torch.empty_like(scores, dtype=torch.float32).scatter_(2, order, place)
    return 1.0 - rank / num_pages.clamp(min=1)[:, None, None]


def update_importance(
    importance: torch.Tensor,
    ranks: torch.Tensor,
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    alpha: float,
    first_alpha: float | None = None,
) -> None:
    """Fold one step's ranks into the pages' importance: ``(1 - alpha) * importance + alpha * rank``.

    A page that several requests of the batch share is folded once, with the highest of its ranks.

    Parameters
    ----------
    importance
        One layer's importance, ``[H, N]``, float32 in [0, 1]; updated.
    ranks
        ``[B, H, M]``, float32 in [0, 1].
    pages
        Page lists, ``[B, M]``, int32.
    num_pages
        Pages of each request, ``[B]``, int32.
    alpha
        Weight of the new rank, in (0, 1].
    first_alpha
        The same where importance is 0, which is that of a page without a rank so far; ``alpha`` by default.
    """
    heads = importance.shape[0]
    valid = torch.arange(pages.shape[1], device=pages.device)[None] < num_pages[:, None]
    listed = pages[valid].long()
    touched, local = torch.unique(listed, return_inverse=True)
    best = torch.zeros((heads, touched.numel()), dtype=ranks.dtype, device=ranks.device)
    best.scatter_reduce_(1, local.expand(heads, -1), ranks.transpose(0, 1)[:, valid], "amax")
    before = importance[:, touched]
    weight = torch.where(before > 0, alpha, alpha if first_alpha is None else first_alpha)
    importance[:, touched] = before.lerp(best, weight)
