"""partial: running softmax attention over tiles of tokens, and the merge of a list's splits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.dot import dot

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

PROGRAMS = 264
"""Programs worth launching: two on each of the 132 multiprocessors of a Hopper GPU."""
MIN_PAGES_PER_SPLIT = 2
MOST_LISTED = 128
"""Pages whose places a program looks up at once, before it reads any of them."""
TILE_ELEMENTS = 4096
"""Elements of K that one step of a program's loop reads: 32 tokens of 128 dimensions."""
MAX_PAGES_PER_TILE = 4
REDUCED_ELEMENTS = 4096
"""Elements of split outputs that the merge holds in registers at once."""


class Workspace(NamedTuple):
    """Partials of a list's splits, before they are merged.

    One workspace serves any number of calls on one stream, with at most the pairs and splits it was made for.
    """

    out: torch.Tensor
    """``[B * H, splits, G, D]``, float32."""
    lse: torch.Tensor
    """Base-2 LSE, ``[B * H, splits, G]``, float32."""
    arrived: torch.Tensor
    """Splits that have finished, ``[B * H]``, int32; all 0 before and after a call."""

    @classmethod
    def allocate(cls, pairs: int, group: int, dim: int, splits: int, device: torch.device | str) -> Workspace:
        """Buffers for ``pairs = B * H`` page lists."""
        return cls(
            torch.empty((pairs, splits, group, dim), dtype=torch.float32, device=device),
            torch.empty((pairs, splits, group), dtype=torch.float32, device=device),
            torch.zeros(pairs, dtype=torch.int32, device=device),
        )


def num_splits(pairs: int, width: int) -> int:
    """Into how many programs to split each of ``pairs`` page lists of up to ``width`` pages."""
    return max(min(triton.cdiv(PROGRAMS, pairs), triton.cdiv(width, MIN_PAGES_PER_SPLIT)), 1)


def pages_per_tile(block_d: int, page_size: int) -> int:
    """Pages that one step of a program's loop reads."""
    return min(max(TILE_ELEMENTS // (block_d * page_size), 1), MAX_PAGES_PER_TILE)


def splits_per_merge(block_g: int, block_d: int) -> int:
    """Splits that the merge holds in registers at once."""
    return max(REDUCED_ELEMENTS // (block_g * block_d), 1)


def listed_block(width: int, splits: int) -> int:
    """Places that a program looks up at once, of its share of a list of ``width`` pages; a power of two."""
    return min(triton.next_power_of_2(triton.cdiv(width, splits)), MOST_LISTED)


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
        ``[rows, D]``, ``[D, T]`` and ``[T, D]``, KV dtype.
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
    fade = tl.exp2(top - shift)
    total = total * fade + tl.sum(weights, 1)
    mixed = dot(weights.to(value.dtype), value, mixed * fade[:, None])
    return higher, total, mixed


@triton.jit
def finish(
    top,
    total,
    mixed,
    pair,
    split,
    out,
    lse,
    split_out,
    split_lse,
    arrived,
    stride_wo,
    stride_wl,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    splits,
    SPLIT: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """Normalise one split's softmax; the last split of a list to get here merges them all into the result."""
    g = tl.arange(0, mixed.shape[0])
    d = tl.arange(0, BLOCK_D)
    row = g[:, None] * DIM + d[None, :]
    real = g < GROUP
    wanted = real[:, None] & (d < DIM)[None, :]
    whole = tl.where(total > 0, total, 1.0)
    result = mixed / whole[:, None]
    result_lse = tl.where(total > 0, top + tl.log2(whole), float("-inf"))
    out += pair * (GROUP * DIM)
    lse += pair * GROUP
    if not SPLIT:
        tl.store(out + row, result, mask=wanted)
        tl.store(lse + g, result_lse * LN_2, mask=real)
    else:
        split_out += pair * stride_wo
        split_lse += pair * stride_wl
        tl.store(split_out + split * (GROUP * DIM) + row, result, mask=wanted)
        tl.store(split_lse + split * GROUP + g, result_lse, mask=real)
        tl.debug_barrier()
        if tl.atomic_add(arrived + pair, 1, sem="acq_rel") == splits - 1:
            _merge_splits(split_out, split_lse, out, lse, DIM, BLOCK_D, GROUP, BLOCK_G, splits, REDUCED)
            tl.store(arrived + pair, 0)


@triton.jit
def _merge_splits(
    split_out,
    split_lse,
    out,
    lse,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    splits,
    REDUCED: tl.constexpr,
):
    """Merge all splits of one page list, ``REDUCED`` at a time."""
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    real = g < GROUP
    inside = d < DIM
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    mixed = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for start in range(0, splits, REDUCED):
        split = start + tl.arange(0, REDUCED)
        row = split[:, None] * GROUP + g[None, :]
        wanted = (split < splits)[:, None] & real[None, :]
        part_lse = tl.load(split_lse + row, mask=wanted, other=float("-inf"), cache_modifier=".cg")
        filled = part_lse > float("-inf")
        part = tl.load(
            split_out + row[:, :, None] * DIM + d[None, None, :],
            mask=filled[:, :, None] & inside[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        higher = tl.maximum(top, tl.max(part_lse, 0))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(part_lse - shift[None, :])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(weights, 0)
        mixed = mixed * fade[:, None] + tl.sum(part * weights[:, :, None], 0)
        top = higher
    result = mixed / tl.where(total > 0, total, 1.0)[:, None]
    result_lse = tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    tl.store(out + g[:, None] * DIM + d[None, :], result, mask=real[:, None] & inside[None, :])
    tl.store(lse + g, result_lse * LN_2, mask=real)
