"""score: how much attention each page may draw, from its summary alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.types.summary import ScoringSummary

PAGES_PER_PROGRAM = 32
WARPS = 1


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
    taken. Where the summary's score is linear, it sums the group's queries before any page is read and the average is a
    matrix-vector product; otherwise, and for the maximum, scores are computed per head, on tensor cores if the summary
    uses them.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``.
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
    Reads ``R * H * W`` elements per listed page, once for the whole group, and writes 4 bytes; memory bound.
    """
    heads = summaries.shape[0]
    kernels = summary.kernels
    assert kernels is not None, "a summary without kernels was not refused at start"
    batch, queries, dim = q.shape
    width = pages.shape[1]
    if out is None:
        out = torch.empty((batch, heads, width), dtype=torch.float32, device=q.device)
    group = queries // heads
    mean = grouping == "mean" or group == 1
    score_sum = kernels.score_sum if mean else None
    _score[(triton.cdiv(width, PAGES_PER_PROGRAM), heads, batch)](
        q,
        summaries,
        pages,
        num_pages,
        out,
        scale,
        width,
        q.stride(0),
        q.stride(1),
        summaries.stride(0),
        summaries.stride(1),
        pages.stride(0),
        out.stride(0),
        out.stride(1),
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        GROUP=group,
        BLOCK_G=max(triton.next_power_of_2(group), 16 if score_sum is None else 1),
        BLOCK_M=PAGES_PER_PROGRAM,
        SCORE=kernels.score,
        SCORE_SUM=score_sum,
        MEAN=mean,
        num_warps=WARPS,
    )
    return out


@triton.jit
def _score(
    q,
    summaries,
    pages,
    num_pages,
    out,
    scale,
    width,
    stride_qb,
    stride_qh,
    stride_mh,
    stride_mn,
    stride_pb,
    stride_ob,
    stride_oh,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SCORE: tl.constexpr,
    SCORE_SUM: tl.constexpr,
    MEAN: tl.constexpr,
):
    start = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    request = tl.program_id(2).to(tl.int64)
    position = start + tl.arange(0, BLOCK_M)
    count = tl.load(num_pages + request)
    target = out + request * stride_ob + head * stride_oh + position
    if start >= count:
        tl.store(target, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=position < width)
    else:
        listed = position < count
        page = tl.load(pages + request * stride_pb + position, mask=listed, other=0).to(tl.int64)
        rows = summaries + head * stride_mh + page[:, None] * stride_mn
        g = tl.arange(0, BLOCK_G)
        d = tl.arange(0, BLOCK_D)
        queries = q + request * stride_qb + (head * GROUP + g[:, None]) * stride_qh + d[None, :]
        heads = (g < GROUP)[:, None] & (d < DIM)[None, :]
        if SCORE_SUM is not None:
            result = SCORE_SUM(rows, queries, listed, heads, scale / GROUP, DIM, BLOCK_D)
        else:
            logits = SCORE(rows, queries, listed, heads, DIM, BLOCK_D)
            if MEAN:
                result = tl.sum(tl.where((g < GROUP)[:, None], logits, 0.0), 0) * (scale / GROUP)
            else:
                result = tl.max(tl.where((g < GROUP)[:, None], logits, float("-inf")), 0) * scale
        tl.store(target, tl.where(listed, result, float("-inf")), mask=position < width)
