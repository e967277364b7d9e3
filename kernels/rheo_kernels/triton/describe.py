"""describe: one decode step's requests as pages: their lists, tail pages and budgets."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.types import Budgets, DecodeBatch

PAGES_PER_PROGRAM = 1024


def describe(
    req_to_token: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    live: int,
    page_size: int,
    budgets: Budgets,
    step: torch.Tensor,
    last_active: torch.Tensor,
    summarised: torch.Tensor,
    unsaved: torch.Tensor,
    out: DecodeBatch,
) -> DecodeBatch:
    """Describe the batch, and note in the page table what its step touches.

    Parameters
    ----------
    req_to_token
        SGLang's token table of slots, ``[R, context]``, int32.
    slots, seq_lens
        Requests' rows in it and their tokens with the new one, ``[B]``, integer.
    live
        Requests; the rows from it on are padding.
    page_size
        Tokens per page.
    budgets
        What bounds the pages that requests may select.
    step
        Decode steps so far, scalar, int32.
    last_active
        Step in which a running request last listed each page, ``[N]``, int32; updated.
    summarised
        Pages that have a summary, ``[N]``, bool; updated.
    unsaved
        Pages whose host copy lacks tokens, ``[L, N]``, bool; tail pages become so.
    out
        Result buffers of ``B`` rows and ``M`` columns, the longest request's pages at least.

    Notes
    -----
    Reads one slot a page, a page of slots apart: 32 bytes of traffic each; writes 8 bytes a page. A
    request's budget, and what its margin asks for, take two reads that wait for each other, in the program that
    describes its tail.
    """
    batch, columns = out.pages.shape
    layers = unsaved.shape[0]
    _describe[(triton.cdiv(columns, PAGES_PER_PROGRAM), batch)](
        req_to_token,
        slots,
        seq_lens,
        step,
        last_active,
        summarised,
        unsaved,
        *budgets,
        *out,
        live,
        columns,
        layers,
        req_to_token.stride(0),
        out.pages.stride(0),
        unsaved.stride(0),
        budgets.caps.stride(0),
        PAGE_SIZE=page_size,
        BLOCK_M=PAGES_PER_PROGRAM,
        BLOCK_L=triton.next_power_of_2(layers),
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["live"])
def _describe(
    req_to_token,
    slots,
    seq_lens,
    step,
    last_active,
    summarised,
    unsaved,
    caps,
    limits,
    floors,
    levels,
    setting_of,
    margins,
    out_pages,
    out_rows,
    out_num_pages,
    out_seq_lens,
    out_past,
    out_tail_pages,
    out_tail_offsets,
    out_filled,
    out_budget,
    out_limit,
    out_floor,
    live,
    columns,
    layers,
    stride_rt,
    stride_pb,
    stride_ul,
    stride_bk,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    request = tl.program_id(1)
    length = tl.where(request < live, tl.load(seq_lens + request).to(tl.int32), 0)
    count = tl.minimum(tl.cdiv(length, PAGE_SIZE), columns)
    slot = tl.load(slots + request).to(tl.int64)
    row = req_to_token + slot * stride_rt
    position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    listed = position < count
    page = tl.load(row + position * PAGE_SIZE, mask=listed, other=0).to(tl.int32) // PAGE_SIZE
    tl.store(out_pages + request.to(tl.int64) * stride_pb + position, page, mask=listed)
    now = tl.load(step)
    tl.store(last_active + page, tl.zeros_like(page) + now, mask=listed)
    if tl.program_id(0) == 0:
        last = tl.maximum(count - 1, 0)
        tail = tl.load(row + last * PAGE_SIZE, mask=count > 0, other=0).to(tl.int32) // PAGE_SIZE
        offset = tl.maximum(length - 1, 0) % PAGE_SIZE
        full = (count > 0) & (offset == PAGE_SIZE - 1)
        tl.store(out_rows + request, tl.where(count > 0, slot, 0).to(tl.int32))
        tl.store(out_num_pages + request, count)
        tl.store(out_seq_lens + request, length)
        tl.store(out_past + request, tl.maximum(length - 1, 0))
        tl.store(out_tail_pages + request, tail)
        tl.store(out_tail_offsets + request, offset)
        tl.store(out_filled + request, tl.where(full, tail, 0))
        setting = tl.load(setting_of + slot).to(tl.int64)
        cell = setting * stride_bk + count
        tl.store(out_budget + request, tl.load(caps + cell))
        tl.store(out_limit + request, tl.load(limits + cell))
        floor = tl.load(floors + setting)
        if levels is not None:
            floor = tl.where(tl.load(margins + slot) < tl.load(levels + setting), 1.0, floor)
        tl.store(out_floor + request, tl.where(count > 0, floor, 0.0))
        if count > 0:
            tl.store(summarised + tail, tl.full([], 1, tl.int1))
            layer = tl.arange(0, BLOCK_L).to(tl.int64)
            tl.store(unsaved + layer * stride_ul + tail, tl.full([BLOCK_L], 1, tl.int1), mask=layer < layers)
