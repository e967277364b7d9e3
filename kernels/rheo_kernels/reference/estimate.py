"""estimate: the attention that each page draws, as a log-sum-exp for every query head, from its summary alone."""

from __future__ import annotations

import torch

from rheo_kernels.reference.subcentroids import decode_subcentroids, row_counts
from rheo_kernels.types.corrections import CORRECTION_STEP, Corrections
from rheo_kernels.types.estimates import LEAST_SCORE
from rheo_kernels.types.subcentroids import SubcentroidLayout


def estimate(
    q: torch.Tensor,
    summaries: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    layout: SubcentroidLayout,
) -> torch.Tensor:
    """Estimate the log-sum-exp of the logits of every page's keys.

    A page's estimate is ``logsumexp over rows (scale * q . row + log tokens) - noise``. A row's mean key never
    overstates its tokens: ``exp`` of a mean is at most the mean of ``exp`` (Jensen). What the codes add is error, even
    over ``[-step / 2, step / 2]`` in every dimension, which raises the expected exponential by a factor of
    ``prod sinh(a_d) / a_d <= exp(sum a_d^2 / 6)``, ``a_d = scale * q_d * step_d / 2``. *noise* is that bound's
    logarithm, ``sum (scale * q_d * step_d)^2 / 24``, so that pages do not gain by being coarsely coded: a key that is
    far larger than the others of its page makes all steps large, and the page's estimate small.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``; float64 ones are multiplied as such, others in float32.
    summaries
        One layer's summaries, ``[H, N, W]``, uint8.
    pages
        Page lists, ``[B, M]``, int32 logical pages; entries past a request's last page are ignored.
    seq_lens
        Tokens of each request, ``[B]``, integer.
    scale
        Softmax scale.
    layout
        Of the summaries.

    Returns
    -------
    torch.Tensor
        ``[B, Hq, M]``, float32, natural logarithm; ``-inf`` past each request's last page.
    """
    batch, queries, dim = q.shape
    heads, width = summaries.shape[0], pages.shape[1]
    place = torch.arange(width, device=q.device)
    counts = (seq_lens[:, None] - place * layout.page_size).clamp(0, layout.page_size)
    safe = pages.long().masked_fill(counts == 0, 0)
    page = decode_subcentroids(summaries[:, safe], layout)
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(wide).view(batch, heads, queries // heads, dim) * scale
    logits = torch.einsum("bhgd,hbmrd->bhgmr", grouped, page.rows.to(wide))
    logits += row_counts(counts, layout).to(wide).log()[:, None, None]
    noise = torch.einsum("bhgd,hbmd->bhgm", grouped.square(), page.steps.to(wide).square()) / 24
    return (logits.logsumexp(-1) - noise).view(batch, queries, width).float()


def log_shares(
    lse: torch.Tensor, num_pages: torch.Tensor, heads: int, corrections: Corrections | None = None
) -> torch.Tensor:
    """The logarithm of the share of attention that each page draws, averaged over the query heads of a group.

    Parameters
    ----------
    lse
        Estimates, ``[B, Hq, M]``.
    num_pages
        Pages of each request, ``[B]``, integer; without an estimate, a page draws nothing.
    heads
        KV heads.
    corrections
        Added to the result.

    Returns
    -------
    torch.Tensor
        ``[B, H, M]``, float32: natural logarithms of shares that add up to 1 for every request and KV head, at least
        `LEAST_SCORE`, and corrections; ``-inf`` past the last page.
    """
    whole = lse.logsumexp(-1, keepdim=True)
    share = (lse - whole.masked_fill(whole == -torch.inf, 0.0)).exp().unflatten(1, (heads, -1)).mean(2)
    past = torch.arange(lse.shape[2], device=lse.device) >= num_pages[:, None, None]
    scores = share.log().clamp(min=LEAST_SCORE)
    if corrections is not None:
        codes = corrections.codes[corrections.rows.long(), :, : lse.shape[2]]
        scores[:, :, : codes.shape[2]] += codes * CORRECTION_STEP
    return scores.masked_fill(past, -torch.inf)
