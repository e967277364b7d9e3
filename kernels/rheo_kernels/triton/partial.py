"""partial: what the attention kernels share: splits of page lists, and a running softmax over tiles of tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from rheo_kernels.triton.dot import dot

LOG2_E = tl.constexpr(1.4426950408889634)

PROGRAMS = 264
"""Programs worth launching: two on each of the 132 multiprocessors of a Hopper GPU."""
MIN_PAGES_PER_SPLIT = 2
MOST_LOOKUPS = 128
"""Pages whose addresses a program looks up at once, before it reads any of them."""
TILE_ELEMENTS = 4096
"""Elements of K that one step of a program's loop reads: 32 tokens of 128 dimensions."""
MAX_PAGES_PER_TILE = 4


def num_splits(pairs: int, width: int) -> int:
    """Into how many programs to split each of ``pairs`` page lists of up to ``width`` pages."""
    return max(min(triton.cdiv(PROGRAMS, pairs), triton.cdiv(width, MIN_PAGES_PER_SPLIT)), 1)


def pages_per_tile(block_d: int, page_size: int) -> int:
    """Pages that one step of a program's loop reads."""
    return min(max(TILE_ELEMENTS // (block_d * page_size), 1), MAX_PAGES_PER_TILE)


def lookup_block(width: int, splits: int) -> int:
    """Pages that a program looks up at once, of its part of a list of ``width`` pages; a power of two."""
    return min(triton.next_power_of_2(triton.cdiv(width, splits)), MOST_LOOKUPS)


@triton.jit
def pick(values, position, wanted):
    """Element ``wanted`` of a vector whose elements are at ``position``, as a scalar."""
    return tl.sum(tl.where(position == wanted, values, 0), 0)


@triton.jit
def accumulate(query, key, value, live, scale, top, total, mixed):
    """Fold one tile of tokens into a running softmax.

    Parameters
    ----------
    query, key, value
        ``[rows, D]``, ``[D, T]`` and ``[T, D]``, of one dtype.
    live
        Tokens that count, ``[T]``, bool; V of the others must be 0.
    scale
        Softmax scale times ``LOG2_E``.
    top, total, mixed
        Maximum logit (base 2), sum of weights and weighted V so far: ``[rows]``, ``[rows]``, ``[rows, D]``,
        float32.

    Returns
    -------
    tuple
        The new ``top, total, mixed``.
    """
    logits = dot(query, key, tl.zeros([query.shape[0], key.shape[1]], tl.float32)) * scale
    logits = tl.where(live[None, :], logits, float("-inf"))
    higher = tl.maximum(top, tl.max(logits, 1))
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(logits - shift[:, None])
    rescale = tl.exp2(top - shift)
    total = total * rescale + tl.sum(weights, 1)
    mixed = dot(weights.to(value.dtype), value, mixed * rescale[:, None])
    return higher, total, mixed


@triton.jit
def store_partial(
    top,
    total,
    mixed,
    part,
    out,
    lse,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Normalise one split's softmax and store it as row ``part`` of a `Partials`."""
    g = tl.arange(0, mixed.shape[0])
    d = tl.arange(0, BLOCK_D)
    real = g < GROUP
    whole = tl.where(total > 0, total, 1.0)
    row = part * (GROUP * DIM) + g[:, None] * DIM + d[None, :]
    tl.store(out + row, mixed / whole[:, None], mask=real[:, None] & (d < DIM)[None, :])
    tl.store(lse + part * GROUP + g, tl.where(total > 0, top + tl.log2(whole), float("-inf")), mask=real)
