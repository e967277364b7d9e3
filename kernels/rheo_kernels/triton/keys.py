"""keys: scores as ordered integers, and the threshold that leaves a wanted number of them."""

from __future__ import annotations

import triton
import triton.language as tl

NO_KEY = tl.constexpr(-(2**31))
"""Smaller than the key of any score: an entry that takes no part."""


@triton.jit
def to_keys(scores):
    """Map float32 scores to int32 keys of the same order; NaN counts as the infinity of its sign."""
    bits = scores.to(tl.int32, bitcast=True)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.minimum(tl.maximum(keys, -0x7F800001), 0x7F800000)


@triton.jit
def find_threshold(keys, lowest, highest, present, wanted):
    """Find the threshold that ``wanted`` keys reach.

    Every pass over the keys tries four thresholds that cut the bracket into fifths and counts all four in one
    sum, so a bracket of any width takes at most 15 passes; scores of a few thousand pages take about six.

    Parameters
    ----------
    keys
        int32 keys, at most 2**15; `NO_KEY` entries never count.
    lowest, highest
        Least and greatest key that takes part, int32.
    present
        How many keys take part, int32.
    wanted
        At least 1 and at most ``present``, int32.

    Returns
    -------
    tuple
        The threshold (int32) and how many keys reach it: more than ``wanted`` only where keys equal to the
        threshold straddle the wanted count.
    """
    low = lowest.to(tl.int64)
    high = highest.to(tl.int64) + 1
    reach = present.to(tl.int64)
    while (low + 1 < high) & (reach > wanted):
        first, second, third, fourth = cuts(low, high)
        counts = tl.sum(tally(keys, first, second, third, fourth), 0)
        low, high, reach = _narrow(low, high, reach, first, counts & 0xFFFF, wanted)
        low, high, reach = _narrow(low, high, reach, second, (counts >> 16) & 0xFFFF, wanted)
        low, high, reach = _narrow(low, high, reach, third, (counts >> 32) & 0xFFFF, wanted)
        low, high, reach = _narrow(low, high, reach, fourth, (counts >> 48) & 0xFFFF, wanted)
    return low.to(tl.int32), reach.to(tl.int32)


@triton.jit
def cuts(low, high):
    """Four thresholds, int64, that cut the bracket into fifths, all strictly inside it."""
    span = high - low
    return (
        _cut(low, high, span, 1),
        _cut(low, high, span, 2),
        _cut(low, high, span, 3),
        _cut(low, high, span, 4),
    )


@triton.jit
def tally(keys, first, second, third, fourth):
    """For each key, which of four thresholds it reaches: one int64 with 16 bits for each, so that sums count."""
    reached = (keys >= first).to(tl.int64)
    reached += (keys >= second).to(tl.int64) << 16
    reached += (keys >= third).to(tl.int64) << 32
    return reached + ((keys >= fourth).to(tl.int64) << 48)


@triton.jit
def _cut(low, high, span, fifths: tl.constexpr):
    """The threshold ``fifths`` fifths up the bracket, strictly inside it."""
    return tl.minimum(tl.maximum(low + ((span * (fifths * 13107)) >> 16), low + 1), high - 1)


@triton.jit
def _narrow(low, high, reach, threshold, count, wanted):
    """Move the end of the bracket that a threshold reached by ``count`` keys replaces."""
    enough = count >= wanted
    inside = (threshold > low) & (threshold < high)
    return (
        tl.where(enough & inside, threshold, low),
        tl.where(enough | (inside == 0), high, threshold),
        tl.where(enough & inside, count, reach),
    )
