"""cover: how many of the best pages leave no more of the estimated attention than a floor allows; a device function."""

from __future__ import annotations

import triton
import triton.language as tl

from rheo_kernels.types import shares as types

STEPS = tl.constexpr(types.STEPS)
WHOLE = tl.constexpr(2.0**types.FRACTION)
MANTISSA = tl.constexpr(2.0**types.MANTISSA)
SHIFT = tl.constexpr(types.FRACTION - types.MANTISSA)
LEVELS = tl.constexpr(types.LEVELS)
LOG_STEP = tl.constexpr(types.LOG_STEP)
OCTAVE = tl.constexpr(types.STEPS.bit_length() - 1)
CUTS = tl.constexpr(4)
"""Levels that one pass tries."""


@triton.jit
def cover(scores, floor):
    """Count the best pages that have to be selected; `rheo_kernels.reference.cover` to the bit.

    The level behind which little enough is left is searched in passes over the row: each tries `CUTS` levels and adds
    up what is left behind all of them at once. At a floor of 0.9 four passes do for 4096 pages.

    Parameters
    ----------
    scores
        Natural logarithms of shares of one request and KV head, float32; ``-inf`` for pages that are selected anyway
        and those that do not exist.
    floor
        Scalar, float32.

    Returns
    -------
    tl.tensor
        Scalar, int32.
    """
    needed = tl.full([], 0, tl.int32)
    if floor > 0.0:
        if floor < 1.0:
            needed = _search(scores, ((1.0 - floor) * WHOLE).to(tl.int32))
        else:
            needed = tl.sum((scores != float("-inf")).to(tl.int32), 0)
    return needed


@triton.jit
def _search(scores, allowance):
    level, share = fixed_point(scores)
    place = tl.arange(0, CUTS)
    # The first level with enough behind it lies in (low, high]. Even if all pages were behind the first `high`, they
    # would be nothing more than the allowance.
    pages = scores.shape[0]
    bound = tl.log2(pages * WHOLE / tl.maximum(allowance.to(tl.float32), 1.0)) * STEPS
    high = tl.minimum(bound.to(tl.int32) + 1, LEVELS - 1)
    low = tl.full([], -2, tl.int32)
    while low + 1 < high:
        cuts = low + 1 + (high - low - 1) * (place + 1) // (CUTS + 1)
        cuts = tl.minimum(cuts, high - 1)
        left = tl.sum(tl.where(level[None, :] > cuts[:, None], share[None, :], 0), 1)
        enough = left <= allowance
        low = tl.maximum(low, tl.max(tl.where(enough, low, cuts), 0))
        high = tl.minimum(high, tl.min(tl.where(enough, cuts, high), 0))
    # Pages within the level, and those at it, which are alike, 16 bits each.
    counts = tl.sum((level <= high).to(tl.int32) + ((level == high).to(tl.int32) << 16), 0)
    within, tied = counts & 0xFFFF, (counts >> 16) & 0xFFFF
    left = tl.sum(tl.where(level > high, share, 0), 0)
    each = _share_of(high)
    spare = tl.minimum((allowance - left) // tl.maximum(each, 1), tied)
    return within - tl.where(each > 0, spare, 0)


@triton.jit
def fixed_point(scores):
    """Levels of scores, int32, -1 where they are no logarithms of shares, and the shares of these levels, int32."""
    valid = scores < 0.0
    depth = tl.where(valid, tl.floor(-scores * LOG_STEP), -1.0)
    level = tl.minimum(depth, LEVELS * 1.0).to(tl.int32)
    return level, _share_of(level)


@triton.jit
def _share_of(level):
    """What a level's share is, int32; nothing below level 0 and from `LEVELS` on."""
    real = (level >= 0) & (level < LEVELS)
    safe = tl.where(real, level, 0)
    mantissa = (tl.exp2((safe & (STEPS - 1)).to(tl.float32) * (-1.0 / STEPS)) * MANTISSA + 0.5).to(tl.int32)
    return tl.where(real, (mantissa << SHIFT) >> (safe >> OCTAVE), 0)
