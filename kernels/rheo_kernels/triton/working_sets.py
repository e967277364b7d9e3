"""count_working_sets: how many pages of the running requests steps selected of late."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.types import HitCounters

PAGES_PER_PASS = 1024
PAGES_PER_PROGRAM = 8192
"""Logical pages whose share of the total one program counts."""


def total_programs(pages: int) -> int:
    """Programs of a row that count the total over ``pages`` logical pages."""
    return triton.cdiv(pages, PAGES_PER_PROGRAM)


def count_working_sets(
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    last_active: torch.Tensor,
    stamped: torch.Tensor,
    step: int,
    oldest: int,
    out: torch.Tensor,
    counters: HitCounters | None = None,
    out_hits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Count the pages of the running requests that were selected in the last steps. A row is a KV head of a layer.

    Parameters
    ----------
    pages
        Page lists, ``[B, M]``, int32.
    num_pages
        Pages of each request, ``[B]``, int32; 0 in padded rows.
    last_active
        Step in which a running request last listed each page, ``[N]``, int32.
    stamped
        Step in which each page was selected last, 0 = never, ``[R, N]``, int32.
    step
        Number of the current step, whose requests have been listed.
    oldest
        The first step that counts; 0 counts every listed page.
    out
        Written: pages of each request in the first ``B`` columns, then what adds up to the total of all of them, a
        shared page once, ``[R, B + total_programs(N)]``, int32, contiguous.
    counters
        The recorder's counters of all layers, ``hits`` and ``selected`` ``[rows, R]``, contiguous.
    out_hits
        Written where there are counters: hits and selected pages of each request so far, over all rows, ``[2, B]``,
        int64, contiguous.

    Notes
    -----
    One launch, of one program per row and column. Reads 8 bytes a listed page and row, and 4 a logical page and row and
    4 more where it is listed; nothing else decides how long it takes. Pages of a list mostly follow each other, so
    their stamps share sectors.
    """
    batch, columns = pages.shape
    rows, logical = stamped.shape
    _, hits, selected, slots = counters or (None, None, None, None)
    _count_working_sets[(batch + total_programs(logical), rows)](
        pages,
        num_pages,
        last_active,
        stamped,
        out,
        hits,
        selected,
        slots,
        out_hits,
        step,
        oldest,
        batch,
        columns,
        logical,
        rows,
        pages.stride(0),
        stamped.stride(0),
        BLOCK=PAGES_PER_PASS,
        BLOCK_R=triton.next_power_of_2(rows),
        SHARE=PAGES_PER_PROGRAM,
        HITS=counters is not None,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["step", "oldest", "batch"])
def _count_working_sets(
    pages,
    num_pages,
    last_active,
    stamped,
    out,
    hits,
    selected,
    slots,
    out_hits,
    step,
    oldest,
    batch,
    columns,
    logical,
    rows,
    stride_pb,
    stride_sr,
    BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SHARE: tl.constexpr,
    HITS: tl.constexpr,
):
    column = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    stamps = stamped + row * stride_sr
    i = tl.arange(0, BLOCK)
    found = tl.zeros([BLOCK], tl.int32)
    if column < batch:
        count = tl.minimum(tl.load(num_pages + column), columns)
        list_of = pages + column.to(tl.int64) * stride_pb
        for start in range(0, count, BLOCK):
            listed = start + i < count
            page = tl.load(list_of + start + i, mask=listed, other=0)
            stamp = tl.load(stamps + page, mask=listed, other=-1)
            found += (listed & (stamp >= oldest)).to(tl.int32)
        if HITS:  # noqa: SIM102 - a constant, then a value of the GPU's
            if row == 0:
                r = tl.arange(0, BLOCK_R)
                counter = tl.load(slots + column) * rows + r
                hit = tl.sum(tl.load(hits + counter, mask=r < rows, other=0), 0)
                taken = tl.sum(tl.load(selected + counter, mask=r < rows, other=0), 0)
                tl.store(out_hits + column, hit)
                tl.store(out_hits + batch + column, taken)
    else:
        first = (column - batch) * SHARE
        for start in range(first, tl.minimum(first + SHARE, logical), BLOCK):
            page = start + i
            exists = (page < logical) & (page > 0)
            running = tl.load(last_active + page, mask=exists, other=-1) == step
            stamp = tl.load(stamps + page, mask=running, other=-1)
            found += (running & (stamp >= oldest)).to(tl.int32)
    tl.store(out + row * tl.num_programs(0) + column, tl.sum(found, 0))
