"""score: how much attention each page may draw, from its summary alone."""

from __future__ import annotations

import torch

from rheo_kernels.reference.summary import summary_kind


def score(
    q: torch.Tensor,
    summaries: torch.Tensor,
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    scale: float,
    grouping: str = "mean",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score every page of every request for each KV head.

    With ``bound`` summaries, a query head's score is the largest logit that any key inside the page's bounding
    box could reach: ``sum_d max(q_d * k_min_d, q_d * k_max_d)`` (Quest, arXiv:2406.10774); with ``mean``
    summaries it is the logit of the mean key. Over the GQA group the scores are averaged, or their maximum is
    taken.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``.
    summaries
        One layer's summaries, ``[H, N, R, D]``.
    pages
        Page lists, ``[B, M]``, int32 logical pages; entries from ``num_pages`` on are ignored.
    num_pages
        Pages of each request, ``[B]``, int32.
    scale
        Softmax scale.
    grouping
        ``"mean"`` or ``"max"`` over the GQA group.
    out
        Result buffer, ``[B, H, M]``, float32.

    Returns
    -------
    torch.Tensor
        Scores ``[B, H, M]``, float32; ``-inf`` past each request's last page.

    Notes
    -----
    Reads ``R * B * H * M * D`` elements of summaries once for the whole group; memory bound.
    """
    num_heads = summaries.shape[0]
    batch, num_queries, dim = q.shape
    width = pages.shape[1]
    valid = torch.arange(width, device=q.device)[None] < num_pages[:, None]
    safe = pages.long().masked_fill(~valid, 0)
    rows = summaries[:, safe].float().unbind(3)
    grouped = q.float().view(batch, num_heads, num_queries // num_heads, dim)
    if summary_kind(summaries) == "bound":
        bound = torch.einsum("bhgd,hbmd->bhgm", grouped.clamp(min=0), rows[1])
        bound += torch.einsum("bhgd,hbmd->bhgm", grouped.clamp(max=0), rows[0])
    else:
        bound = torch.einsum("bhgd,hbmd->bhgm", grouped, rows[0])
    reduced = bound.mean(2) if grouping == "mean" else bound.amax(2)
    scores = (reduced * scale).masked_fill(~valid[:, None], -torch.inf)
    return scores if out is None else out.copy_(scores)
