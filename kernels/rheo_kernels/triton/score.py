"""score: how much attention each page may draw, from its summary alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.dot import dot

PAGES_PER_PROGRAM = 32
WARPS = 1


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

    With ``bound`` summaries, a query head's score is Quest's bound
    ``sum_d max(q_d * k_min_d, q_d * k_max_d)`` (arXiv:2406.10774), that is
    ``relu(q) . k_max + min(q, 0) . k_min``; with ``mean`` summaries it is the logit of the mean key. Over the
    GQA group the scores are averaged, or their maximum is taken. The average is linear in ``relu(q)`` and
    ``min(q, 0)``, so the group collapses to one pair of vectors before any page is read and the kernel is a
    matrix-vector product; the maximum runs on tensor cores.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``.
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
    Reads ``R * H * D`` elements per listed page, once for the whole group, and writes 4 bytes; memory bound.
    """
    heads, dim = summaries.shape[0], summaries.shape[3]
    batch, queries, _ = q.shape
    width = pages.shape[1]
    if out is None:
        out = torch.empty((batch, heads, width), dtype=torch.float32, device=q.device)
    group = queries // heads
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
        BLOCK_G=triton.next_power_of_2(group),
        BLOCK_M=PAGES_PER_PROGRAM,
        BOUND=summaries.shape[2] == 2,
        MEAN=grouping == "mean" or group == 1,
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
    BOUND: tl.constexpr,
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
        d = tl.arange(0, BLOCK_D)
        inside = d < DIM
        row = summaries + head * stride_mh + page[:, None] * stride_mn + d[None, :]
        wanted = listed[:, None] & inside[None, :]
        low = tl.load(row, mask=wanted, other=0.0)
        if BOUND:
            high = tl.load(row + DIM, mask=wanted, other=0.0)

        if MEAN:
            g = tl.arange(0, BLOCK_G)
            rows = q + request * stride_qb + (head * GROUP + g[:, None]) * stride_qh + d[None, :]
            queries = tl.load(rows, mask=(g < GROUP)[:, None] & inside[None, :], other=0.0).to(tl.float32)
            queries *= scale / GROUP
            if BOUND:
                toward_high = tl.sum(tl.maximum(queries, 0.0), 0)
                toward_low = tl.sum(tl.minimum(queries, 0.0), 0)
                bound = high.to(tl.float32) * toward_high[None, :] + low.to(tl.float32) * toward_low[None, :]
            else:
                bound = low.to(tl.float32) * tl.sum(queries, 0)[None, :]
            result = tl.sum(bound, 1)
        else:
            g = tl.arange(0, 16)
            rows = q + request * stride_qb + (head * GROUP + g[:, None]) * stride_qh + d[None, :]
            queries = tl.load(rows, mask=(g < GROUP)[:, None] & inside[None, :], other=0.0)
            wide = queries.to(tl.float32)
            logits = tl.zeros([16, BLOCK_M], tl.float32)
            if BOUND:
                logits = dot(tl.maximum(wide, 0.0).to(high.dtype), tl.trans(high), logits)
                logits = dot(tl.minimum(wide, 0.0).to(low.dtype), tl.trans(low), logits)
            else:
                logits = dot(queries.to(low.dtype), tl.trans(low), logits)
            logits = tl.where((g < GROUP)[:, None], logits, float("-inf"))
            result = tl.max(logits, 0) * scale
        tl.store(target, tl.where(listed, result, float("-inf")), mask=position < width)
