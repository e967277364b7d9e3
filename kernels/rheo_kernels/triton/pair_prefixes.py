"""pair_prefixes: which requests of a batch begin with the same pages, two by two."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.types.estimates import PAGES_PER_BLOCK
from rheo_kernels.types.prefix_pairs import PrefixPairs


def pair_prefixes(
    pages: torch.Tensor, seq_lens: torch.Tensor, page_size: int, scratch: torch.Tensor, out: PrefixPairs
) -> PrefixPairs:
    """Pair requests that share leading pages; see `rheo_kernels.reference.pair_prefixes`.

    Parameters
    ----------
    pages, seq_lens, page_size
        See the reference; ``pages`` contiguous in ``M``.
    scratch
        ``B * (B + 1)`` int32 at least, contiguous.
    out
        Result buffers.

    Notes
    -----
    One program per request searches where its list and each other one part, in ``log2(M)`` reads that wait for each
    other; one program then pairs neighbours. Bound by latency: two launches a step, for all layers.
    """
    batch, columns = pages.shape
    block = triton.next_power_of_2(batch)
    order, common = scratch[:batch], scratch[batch:]
    _sort[(batch,)](
        pages,
        seq_lens,
        order,
        common,
        batch,
        columns,
        columns.bit_length(),
        pages.stride(0),
        PAGE_SIZE=page_size,
        BLOCK=block,
        num_warps=4,
    )
    _pair[(1,)](order, common, *out, batch, UNIT=PAGES_PER_BLOCK, BLOCK=block, num_warps=4)
    return out


# Batches of many sizes come and go: none of them is worth a compilation of its own, but for the block.
@triton.jit(
    do_not_specialize=["batch", "columns", "searches"], do_not_specialize_on_alignment=["order", "common"]
)
def _sort(
    pages,
    seq_lens,
    order,
    common,
    batch,
    columns,
    searches,
    stride_pb,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each request's place among all, and the pages that it has in common with each."""
    request = tl.program_id(0)
    other = tl.arange(0, BLOCK)
    present = other < batch
    mine = pages + request.to(tl.int64) * stride_pb
    theirs = pages + other.to(tl.int64) * stride_pb
    full = tl.minimum(tl.load(seq_lens + request).to(tl.int32) // PAGE_SIZE, columns)
    others_full = tl.load(seq_lens + other, mask=present, other=0).to(tl.int32) // PAGE_SIZE
    others_full = tl.minimum(others_full, columns)
    bound = tl.minimum(others_full, full)
    low = tl.zeros_like(bound)
    high = bound
    for _ in range(searches):
        unknown = low < high
        middle = (low + high) // 2
        one = tl.load(mine + middle, mask=unknown, other=0)
        two = tl.load(theirs + middle, mask=unknown, other=0)
        low = tl.where(unknown & (one == two), middle + 1, low)
        high = tl.where(unknown & (one != two), middle, high)
    parted = low < bound
    one = tl.load(mine + low, mask=parted, other=0)
    two = tl.load(theirs + low, mask=parted, other=0)
    shorter = (others_full < full) | ((others_full == full) & (other < request))
    in_front = tl.where(parted, two < one, shorter)
    tl.store(order + tl.sum((in_front & present).to(tl.int32), 0), request)
    tl.store(common + request * batch + other, low, mask=present)


@triton.jit
def _shared_units(order, common, place, batch, UNIT: tl.constexpr):
    """What the request in a place and the one in front of it share."""
    two = (place > 0) & (place < batch)
    one = tl.load(order + place - 1, mask=two, other=0)
    other = tl.load(order + place, mask=two, other=0)
    return tl.load(common + one * batch + other, mask=two, other=0) // UNIT


@triton.jit
def _larger(one, other):
    return tl.maximum(one, other)


@triton.jit(do_not_specialize=["batch"], do_not_specialize_on_alignment=["order", "common"])
def _pair(order, common, partner, units, batch, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    last = _shared_units(order, common, place - 1, batch, UNIT)
    this = _shared_units(order, common, place, batch, UNIT)
    following = _shared_units(order, common, place + 1, batch, UNIT)
    after = _shared_units(order, common, place + 2, batch, UNIT)
    cut = (this == 0) | (2 * this < tl.maximum(last, following))
    next_cut = (following == 0) | (2 * following < tl.maximum(this, after))
    begin = tl.associative_scan(tl.where(cut, place, 0), 0, _larger)
    second = (place - begin) % 2 == 1
    first = ~second & ~next_cut
    other = tl.where(second, place - 1, place + 1)
    paired = (second | first) & (place < batch)
    request = tl.load(order + place, mask=place < batch, other=0)
    found = tl.load(order + other, mask=paired, other=0)
    tl.store(partner + request, tl.where(paired, found, -1), mask=place < batch)
    tl.store(units + request, tl.where(paired, tl.where(second, this, following), 0), mask=place < batch)
