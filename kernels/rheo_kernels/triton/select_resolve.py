"""select_resolve: choose each request's pages and look them up in the page table, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.launch import row_block, row_warps
from rheo_kernels.triton.select import choose
from rheo_kernels.types import HitCounters, ResidencyBonus, Selected, Stamps


def select_resolve(
    scores: torch.Tensor,
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    seq_lens: torch.Tensor,
    budget: torch.Tensor,
    page_table: torch.Tensor,
    page_size: int,
    sink_pages: int,
    window_pages: int,
    out: Selected,
    accessed: torch.Tensor | None = None,
    counters: HitCounters | None = None,
    lse: torch.Tensor | None = None,
    stamps: Stamps | None = None,
    bonus: ResidencyBonus | None = None,
) -> Selected:
    """Select pages as `select` does and resolve them as `resolve` does; list hits before misses.

    Parameters
    ----------
    scores
        Page scores, ``[B, H, M]``, float32.
    pages
        Page lists, ``[B, M]``, int32.
    num_pages, seq_lens
        Pages (int32) and tokens (integer) of each request, ``[B]``.
    budget
        Pages each request and KV head may select, ``[B, H]``, int32.
    page_table
        One layer's page table, ``[H, N]``, int32, negative = no frame.
    page_size
        Tokens per page.
    sink_pages, window_pages
        Always-selected pages at the start and at the end.
    out
        Result buffers.
    accessed
        One layer's accessed bits, ``[H, F]``, int8: set to 1 for every hit frame. `value_frames` reads and
        clears them.
    counters
        The recorder's counters of this layer; updated atomically.
    lse
        Estimates, ``[B, Hq, M]``, float32, contiguous: those of selected pages become ``-inf``, for every query head of
        a group.
    stamps
        This layer's stamps; those of selected pages become the current step.
    bonus
        Ranks pages by what `favour` makes of their scores, which stay as they are.

    Returns
    -------
    Selected
        ``out``. Within hits and within misses, pages keep the order of the request's page list.

    Notes
    -----
    Reads ``4 M`` bytes a row, with a bonus ``12 M``, and 8 a selected page, writes ``20 S`` a row, 4 bytes an excluded
    estimate and 4 a stamp; bound by latency.
    """
    batch, heads, columns = scores.shape
    width = out.pages.shape[2]
    block = row_block(columns)
    rates, hits, selected, slots = counters or (None, None, None, None)
    step, stamped = stamps or (None, None)
    nats, floors = bonus or (0.0, None)
    _select_resolve[(batch, heads)](
        scores,
        pages,
        num_pages,
        seq_lens,
        budget,
        page_table,
        *out,
        lse,
        accessed,
        rates,
        hits,
        selected,
        slots,
        step,
        stamped,
        floors,
        nats,
        columns,
        width,
        sink_pages,
        max(window_pages, 1),
        scores.stride(0),
        scores.stride(1),
        pages.stride(0),
        budget.stride(0),
        budget.stride(1),
        page_table.stride(0),
        0 if accessed is None else accessed.stride(0),
        0 if rates is None else rates.stride(0),
        0 if stamped is None else stamped.stride(0),
        PAGE_SIZE=page_size,
        BLOCK_M=block,
        BLOCK_S=triton.next_power_of_2(width),
        GROUP=0 if lse is None else lse.shape[1] // heads,
        MARK=accessed is not None,
        COUNT=counters is not None,
        STAMP=stamps is not None,
        FAVOUR=bonus is not None,
        num_warps=row_warps(block),
    )
    return out


@triton.jit
def page_tokens(index, seq_len, PAGE_SIZE: tl.constexpr):
    """Tokens that a request of ``seq_len`` tokens has in its page number ``index``, int32."""
    left = seq_len - index * PAGE_SIZE
    return tl.minimum(tl.maximum(left, 0), PAGE_SIZE).to(tl.int32)


@triton.jit
def _select_resolve(
    scores,
    pages,
    num_pages,
    seq_lens,
    budget,
    page_table,
    out_pages,
    out_hits,
    out_misses,
    out_valid,
    out_indices,
    out_num_hits,
    out_num_selected,
    lse,
    accessed,
    rates,
    hit_total,
    selected_total,
    slots,
    step,
    stamped,
    floors,
    nats,
    columns,
    width,
    sink_pages,
    window_pages,
    stride_sb,
    stride_sh,
    stride_pb,
    stride_bb,
    stride_bh,
    stride_th,
    stride_ah,
    stride_cr,
    stride_mh,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    GROUP: tl.constexpr,
    MARK: tl.constexpr,
    COUNT: tl.constexpr,
    STAMP: tl.constexpr,
    FAVOUR: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    position = tl.arange(0, BLOCK_M)
    exists = position < columns
    row = tl.load(scores + request * stride_sb + head * stride_sh + position, mask=exists, other=0.0)
    count = tl.minimum(tl.load(num_pages + request), columns)
    allowed = tl.load(budget + request * stride_bb + head * stride_bh)
    if FAVOUR:
        listed = position < count
        own = tl.load(pages + request * stride_pb + position, mask=listed, other=0)
        held = tl.load(page_table + head * stride_th + own, mask=listed, other=-1)
        held = tl.where(tl.load(floors + request) > 0, -1, held)
        row = tl.where((held >= 0) & (row == row), row + nats, row)
    chosen, num_selected = choose(row, position, count, allowed, width, sink_pages, window_pages)

    num_selected = tl.minimum(num_selected, width)
    pair = request * tl.num_programs(1) + head
    lists = pair * width
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(out_indices + lists + place, position, mask=chosen & (place < width))
    tl.debug_barrier()

    column = tl.arange(0, BLOCK_S)
    taken = column < num_selected
    index = tl.load(out_indices + lists + column, mask=taken, other=-1)
    tl.debug_barrier()
    page = tl.load(pages + request * stride_pb + index, mask=taken, other=-1)
    frame = tl.load(page_table + head * stride_th + page, mask=taken, other=-1)
    resident = taken & (frame >= 0)
    tokens = page_tokens(index, tl.load(seq_lens + request), PAGE_SIZE)
    num_hits = tl.sum(resident.to(tl.int32), 0)
    before = tl.cumsum(resident.to(tl.int32), 0)
    column = tl.where(resident, before - 1, tl.where(taken, num_hits + column - before, column))

    inside = column < width
    target = lists + column
    tl.store(out_pages + target, page, mask=inside)
    tl.store(out_hits + target, tl.where(resident, frame, -1), mask=inside)
    tl.store(out_misses + target, tl.where(resident, -1, page), mask=inside)
    tl.store(out_valid + target, tl.where(taken, tokens, 0), mask=inside)
    tl.store(out_indices + target, index, mask=inside)
    tl.store(out_num_hits + pair, num_hits)
    tl.store(out_num_selected + pair, num_selected)

    for member in tl.static_range(GROUP):
        estimates = lse + (pair * GROUP + member) * columns
        tl.store(estimates + index, tl.full([BLOCK_S], float("-inf"), tl.float32), mask=taken)
    if MARK:
        tl.store(accessed + head * stride_ah + frame, tl.full([BLOCK_S], 1, tl.int8), mask=resident)
    if STAMP:
        now = tl.zeros([BLOCK_S], tl.int32) + tl.load(step)
        tl.store(stamped + head * stride_mh + page, now, mask=taken)
    if COUNT:
        counter = tl.load(slots + request) * stride_cr + head
        share = num_hits.to(tl.float32) / tl.maximum(num_selected, 1).to(tl.float32)
        tl.atomic_add(rates + counter, share, sem="relaxed")
        tl.atomic_add(hit_total + counter, num_hits.to(tl.int64), sem="relaxed")
        tl.atomic_add(selected_total + counter, num_selected.to(tl.int64), sem="relaxed")
