"""importance: an exponential average of how high attention ranked each page."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.launch import row_block, row_warps

BINS = 256
"""Bins of the histogram, one for each tail included."""
FOLD_COLUMNS = 1024


def update_importance(
    scores: torch.Tensor,
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    alpha: float,
    importance: torch.Tensor,
    scratch: torch.Tensor | None = None,
    first_alpha: float | None = None,
) -> None:
    """Rank the scores and fold the ranks: ``importance = (1 - alpha) * importance + alpha * rank``.

    Ranks come from a histogram of the scores instead of a sort. Its bins are equally wide between the least
    and the greatest score within four standard deviations of the mean; beyond them, each tail is one bin.
    Inside a bin, the rank follows the score linearly.

    Parameters
    ----------
    scores
        ``[B, H, M]``, float32.
    pages
        Page lists, ``[B, M]``, int32.
    num_pages
        Pages of each request, ``[B]``, int32.
    alpha
        Weight of the new rank, in (0, 1].
    importance
        One layer's importance, ``[H, N]``, float32 in [0, 1]; updated.
    scratch
        Needed where requests may share pages: ``[H, N]``, int32, all 0 before and after. A shared page is
        folded once, with the highest of its ranks.
    first_alpha
        The weight where importance is 0, which is that of a page without a rank so far; ``alpha`` by default.

    Notes
    -----
    The rank of a page is off by at most the share of the row's pages that fall into its bin, and the order of
    ranks never contradicts the order of scores. Both tails together hold at most 1/16 of the row (Chebyshev's
    inequality); a bin of a bell-shaped row holds about 1/80 of it at most, and interpolation leaves an error
    below 0.02. Reads 8 bytes and updates 4 per page; with ``scratch``, updates 8 more.
    """
    batch, heads, columns = scores.shape
    block = row_block(columns)
    _rank[(batch, heads)](
        scores,
        pages,
        num_pages,
        importance,
        scratch,
        alpha,
        first_alpha,
        columns,
        scores.stride(0),
        scores.stride(1),
        pages.stride(0),
        importance.stride(0),
        0 if scratch is None else scratch.stride(0),
        BLOCK_M=block,
        BINS=BINS,
        SHARED=scratch is not None,
        num_warps=row_warps(block),
    )
    if scratch is not None:
        _fold[(triton.cdiv(columns, FOLD_COLUMNS), heads, batch)](
            pages,
            num_pages,
            importance,
            scratch,
            alpha,
            first_alpha,
            columns,
            pages.stride(0),
            importance.stride(0),
            scratch.stride(0),
            BLOCK_M=FOLD_COLUMNS,
            num_warps=4,
        )


@triton.jit
def _share(part, whole):
    """``part / whole`` clamped to [0, 1], and one half where ``whole`` is not positive."""
    share = part / tl.where(whole > 0, whole, 1.0)
    return tl.where(whole > 0, tl.minimum(tl.maximum(share, 0.0), 1.0), 0.5)


@triton.jit
def rank_row(scores, listed, count, BINS: tl.constexpr):
    """Ranks of one row's scores, scaled to (0, 1], the best 1; meaningless where nothing is listed.

    Parameters
    ----------
    scores, listed
        The row's scores (finite, float32) and which of them count (bool).
    count
        How many count; scalar, int32, at least 1.
    BINS
        Bins of the histogram, both tails included.
    """
    least = tl.min(tl.where(listed, scores, float("inf")), 0)
    most = tl.max(tl.where(listed, scores, float("-inf")), 0)
    height = tl.where(listed, _share(scores - least, most - least), 0.0)
    mean = tl.sum(height, 0) / count
    variance = tl.maximum(tl.sum(height * height, 0) / count - mean * mean, 0.0)
    deviation = height - mean
    central = listed & (deviation * deviation <= 16.0 * variance + 1e-12)
    bottom = tl.min(tl.where(central, scores, float("inf")), 0)
    top = tl.max(tl.where(central, scores, float("-inf")), 0)

    down = _share(top - scores, top - bottom) * (BINS - 2)
    step = tl.minimum(down.to(tl.int32), BINS - 3)
    above = scores > top
    below = scores < bottom
    bucket = tl.where(above, 0, tl.where(below, BINS - 1, step + 1))
    within_tail = tl.where(above, _share(most - scores, most - top), _share(bottom - scores, bottom - least))
    within = tl.where(above | below, within_tail, tl.where(top > bottom, down - step, 0.5))

    sizes = tl.histogram(bucket, BINS, mask=listed)
    better = tl.cumsum(sizes, 0) - sizes
    size = tl.gather(sizes, bucket, 0).to(tl.float32)
    place = tl.gather(better, bucket, 0).to(tl.float32) + within * tl.maximum(size - 1, 0)
    return 1.0 - place / count


@triton.jit
def _average(old, rank, alpha, first_alpha):
    """``old`` moved towards ``rank``, from 0 by a weight of its own where there is one."""
    if first_alpha is not None:
        alpha = tl.where(old > 0, alpha, first_alpha)
    return old + alpha * (rank - old)


@triton.jit
def _rank(
    scores,
    pages,
    num_pages,
    importance,
    scratch,
    alpha,
    first_alpha,
    columns,
    stride_sb,
    stride_sh,
    stride_pb,
    stride_ih,
    stride_ch,
    BLOCK_M: tl.constexpr,
    BINS: tl.constexpr,
    SHARED: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    position = tl.arange(0, BLOCK_M)
    exists = position < columns
    row = tl.load(scores + request * stride_sb + head * stride_sh + position, mask=exists, other=0.0)
    page = tl.load(pages + request * stride_pb + position, mask=exists, other=0)
    count = tl.minimum(tl.load(num_pages + request), columns)
    if count > 0:
        listed = position < count
        rank = rank_row(row, listed, count, BINS)
        if SHARED:
            bits = rank.to(tl.int32, bitcast=True)
            tl.atomic_max(scratch + head * stride_ch + page, bits, mask=listed, sem="relaxed")
        else:
            target = importance + head * stride_ih + page
            old = tl.load(target, mask=listed, other=0.0)
            tl.store(target, _average(old, rank, alpha, first_alpha), mask=listed)


@triton.jit
def _fold(
    pages,
    num_pages,
    importance,
    scratch,
    alpha,
    first_alpha,
    columns,
    stride_pb,
    stride_ih,
    stride_ch,
    BLOCK_M: tl.constexpr,
):
    position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)
    request = tl.program_id(2).to(tl.int64)
    listed = position < tl.minimum(tl.load(num_pages + request), columns)
    page = tl.load(pages + request * stride_pb + position, mask=listed, other=0)
    bits = tl.atomic_xchg(
        scratch + head * stride_ch + page, tl.zeros_like(position), mask=listed, sem="relaxed"
    )
    rank = bits.to(tl.float32, bitcast=True)
    first = listed & (bits > 0)
    target = importance + head * stride_ih + page
    old = tl.load(target, mask=first, other=0.0)
    tl.store(target, _average(old, rank, alpha, first_alpha), mask=first)
