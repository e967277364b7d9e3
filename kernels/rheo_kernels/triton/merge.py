"""merge: partial attention outputs over disjoint tokens into one, by their LSE."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.partial import LOG2_E
from rheo_kernels.types import Coverage, Partials

LN_2 = tl.constexpr(0.6931471805599453)
BLOCK_ELEMENTS = 4096
"""Elements of partial outputs that a program holds in registers at once."""


def merge(
    parts: Partials,
    more: Partials | None,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    host_out: torch.Tensor | None = None,
    host_lse: torch.Tensor | None = None,
    tail: Partials | None = None,
    coverage: Coverage | None = None,
    factor: float = 1.0,
) -> torch.Tensor:
    """Combine all splits of up to three sets of partials, and a partial of the host's, if there is one.

    Parameters
    ----------
    parts, more, tail
        Partials of the same page lists over disjoint tokens; outputs of empty ones are not read.
    out
        Result buffer, ``[B, Hq, D]``, floating, contiguous.
    lse
        Natural-log LSE of the result, ``[B, Hq]``, float32, contiguous, if wanted.
    host_out, host_lse
        Output and natural-log LSE of one more partial, ``[B, Hq, D]`` and ``[B, Hq]``, float32, contiguous, in mapped
        pinned memory or on the device.
    coverage
        If given with a ``tail``, counts the share of attention that all other partials have; updated atomically.
    factor
        The result is multiplied by it before it is rounded.

    Returns
    -------
    torch.Tensor
        ``out``; 0 where every partial is empty (LSE ``-inf``).

    Notes
    -----
    One program per query head. Reads ``4 D`` bytes per split and query head; bound by latency.
    """
    pairs, splits, group, dim = parts.out.shape
    block_d = triton.next_power_of_2(dim)
    shares, slots = coverage or (None, None)
    _merge[(pairs * group,)](
        parts.out,
        parts.lse,
        None if more is None else more.out,
        None if more is None else more.lse,
        None if tail is None else tail.out,
        None if tail is None else tail.lse,
        host_out,
        host_lse,
        out,
        lse,
        shares,
        slots,
        factor,
        splits,
        0 if more is None else more.splits,
        0 if tail is None else tail.splits,
        0 if shares is None else shares.shape[1],
        0 if shares is None else shares.stride(0),
        GROUP=group,
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_S=max(BLOCK_ELEMENTS // block_d, 1),
        MORE=more is not None,
        TAIL=tail is not None,
        HOST=host_out is not None,
        LSE=lse is not None,
        COVERAGE=tail is not None and shares is not None,
        num_warps=4,
    )
    return out


@triton.jit
def _fold(outs, lses, pair, member, splits, top, total, mixed, GROUP, DIM, BLOCK_D, BLOCK_S: tl.constexpr):
    """Fold all splits of one query head's list into a running softmax over splits (base 2)."""
    d = tl.arange(0, BLOCK_D)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        row = (pair * splits + split) * GROUP + member
        part_lse = tl.load(lses + row, mask=split < splits, other=float("-inf"))
        filled = part_lse > float("-inf")
        part = tl.load(
            outs + row[:, None] * DIM + d[None, :], mask=filled[:, None] & (d < DIM)[None, :], other=0.0
        )
        higher = tl.maximum(top, tl.max(part_lse, 0))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(part_lse - shift)
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(weights, 0)
        mixed = mixed * fade + tl.sum(part * weights[:, None], 0)
        top = higher
    return top, total, mixed


@triton.jit(do_not_specialize=["splits", "more_splits", "tail_splits"])
def _merge(
    outs,
    lses,
    more_outs,
    more_lses,
    tail_outs,
    tail_lses,
    host_out,
    host_lse,
    out,
    lse,
    shares,
    slots,
    factor,
    splits,
    more_splits,
    tail_splits,
    heads,
    stride_cr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    MORE: tl.constexpr,
    TAIL: tl.constexpr,
    HOST: tl.constexpr,
    LSE: tl.constexpr,
    COVERAGE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    pair = row // GROUP
    member = row % GROUP
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    mixed = tl.zeros([BLOCK_D], tl.float32)
    if TAIL:
        top, total, mixed = _fold(
            tail_outs, tail_lses, pair, member, tail_splits, top, total, mixed, GROUP, DIM, BLOCK_D, BLOCK_S
        )
    tail_top, tail_total = top, total
    top, total, mixed = _fold(
        outs, lses, pair, member, splits, top, total, mixed, GROUP, DIM, BLOCK_D, BLOCK_S
    )
    if MORE:
        top, total, mixed = _fold(
            more_outs, more_lses, pair, member, more_splits, top, total, mixed, GROUP, DIM, BLOCK_D, BLOCK_S
        )
    if HOST:
        part_lse = tl.load(host_lse + row) * LOG2_E
        part = tl.load(host_out + row * DIM + d, mask=inside, other=0.0)
        part = tl.where(part_lse > float("-inf"), part, 0.0)
        higher = tl.maximum(top, part_lse)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(part_lse - shift)
        fade = tl.exp2(top - shift)
        total = total * fade + weight
        mixed = mixed * fade + part * weight
        top = higher
    whole = tl.where(total > 0, total, 1.0)
    tl.store(out + row * DIM + d, (mixed / whole * factor).to(out.dtype.element_ty), mask=inside)
    if LSE:
        tl.store(lse + row, tl.where(total > 0, (top + tl.log2(whole)) * LN_2, float("-inf")))
    if COVERAGE:
        left_out = tail_total * tl.exp2(tail_top - tl.where(top == float("-inf"), 0.0, top)) / whole
        slot = tl.load(slots + pair // heads)
        tl.atomic_add(shares + slot * stride_cr + pair % heads, (1 - left_out) / GROUP, sem="relaxed")
