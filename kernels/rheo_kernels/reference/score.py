"""score: how much attention each page may draw, from its summary alone."""

from __future__ import annotations

import torch

from rheo_kernels.types.summary import ScoringSummary


def score(
    q: torch.Tensor,
    summary: ScoringSummary,
    summaries: torch.Tensor,
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    scale: float,
    grouping: str = "mean",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score every page of every request for each KV head.

    The summary scores pages for every query head; over the GQA group the scores are averaged, or their maximum is
    taken.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``.
    summary
        Kind of the summaries.
    summaries
        One layer's summaries, ``[H, N, R, W]``.
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
    Reads ``R * B * H * M * W`` elements of summaries once for the whole group; memory bound.
    """
    num_heads = summaries.shape[0]
    batch, num_queries, dim = q.shape
    width = pages.shape[1]
    valid = torch.arange(width, device=q.device)[None] < num_pages[:, None]
    safe = pages.long().masked_fill(~valid, 0)
    grouped = q.to(torch.promote_types(q.dtype, torch.float32))
    grouped = grouped.view(batch, num_heads, num_queries // num_heads, dim)
    logits = summary.score(grouped, summaries[:, safe])
    reduced = logits.mean(2) if grouping == "mean" else logits.amax(2)
    scores = (reduced * scale).masked_fill(~valid[:, None], -torch.inf)
    return scores if out is None else out.copy_(scores)
