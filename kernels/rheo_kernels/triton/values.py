"""values: what `admit` weighs: resident frames by their pages, and a step's misses as candidates."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from rheo_kernels.types import IdleDecay, RunnersUp

FRAMES_PER_PROGRAM = 128
MISSES_PER_PASS = 1024


def value_frames(
    page_of: torch.Tensor,
    worth: torch.Tensor,
    unsaved: torch.Tensor,
    accessed: torch.Tensor | None = None,
    idle_decay: IdleDecay | None = None,
    wanted: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Value every frame by the page in it. A row is one KV head of one of ``L`` layers, ``R = L * H``.

    Parameters
    ----------
    page_of
        Page in each frame, ``[R, F]``, int32, -1 = free.
    worth
        What each page is worth, ``[R, N]``, float32.
    unsaved
        Pages without a complete host copy, ``[L, N]``, bool; their frames are pinned.
    accessed
        Accessed bits, ``[R, F]``, int8: frames that this step reads, pinned as well; cleared.
    idle_decay
        Decay of the worth of idle pages; none by default.
    wanted
        How many frames of each row are wanted, ``[R]``, int32: rows of which none is are not valued. By default, all
        rows are.
    out
        Result buffer, ``[R, F]``, float32, contiguous.

    Returns
    -------
    torch.Tensor
        ``[R, F]``, float32: ``-inf`` for a free frame, ``inf`` for a pinned one.

    Notes
    -----
    Moves about 18 bytes per frame, 1 in rows of which none is wanted.
    """
    rows, num_frames = page_of.shape
    if out is None:
        out = torch.empty((rows, num_frames), dtype=torch.float32, device=page_of.device)
    factor, step, last_active = idle_decay or (1.0, None, None)
    _value_frames[(triton.cdiv(num_frames, FRAMES_PER_PROGRAM), rows)](
        page_of,
        worth,
        unsaved,
        accessed,
        step,
        last_active,
        wanted,
        out,
        math.log2(factor),
        num_frames,
        rows // unsaved.shape[0],
        page_of.stride(0),
        worth.stride(0),
        unsaved.stride(0),
        0 if accessed is None else accessed.stride(0),
        BLOCK_F=FRAMES_PER_PROGRAM,
        ACCESSED=accessed is not None,
        DECAY=idle_decay is not None,
        WANTED=wanted is not None,
        num_warps=4,
    )
    return out


@triton.jit
def _value_frames(
    page_of,
    worth,
    unsaved,
    accessed,
    step,
    last_active,
    wanted,
    out,
    log_factor,
    num_frames,
    rows_per_layer,
    stride_pr,
    stride_wr,
    stride_ul,
    stride_ar,
    BLOCK_F: tl.constexpr,
    ACCESSED: tl.constexpr,
    DECAY: tl.constexpr,
    WANTED: tl.constexpr,
):
    frame = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    row = tl.program_id(1).to(tl.int64)
    exists = frame < num_frames
    if WANTED:
        unwanted = tl.load(wanted + row) == 0
        if unwanted:
            if ACCESSED:
                nothing = tl.zeros([BLOCK_F], tl.int8)
                tl.store(accessed + row * stride_ar + frame, nothing, mask=exists)
            return
    page = tl.load(page_of + row * stride_pr + frame, mask=exists, other=-1)
    occupied = page >= 0
    value = tl.load(worth + row * stride_wr + page, mask=occupied, other=0.0)
    pinned = tl.load(unsaved + (row // rows_per_layer) * stride_ul + page, mask=occupied, other=0) != 0
    if DECAY:
        idle = tl.load(step) - tl.load(last_active + page, mask=occupied, other=0)
        value *= tl.exp2(log_factor * idle.to(tl.float32))
    if ACCESSED:
        bits = accessed + row * stride_ar + frame
        pinned = pinned | (tl.load(bits, mask=exists, other=0) != 0)
        tl.store(bits, tl.zeros([BLOCK_F], tl.int8), mask=exists)
    value = tl.where(occupied, tl.where(pinned, float("inf"), value), float("-inf"))
    tl.store(out + row * num_frames + frame, value, mask=exists)


def gather_misses(
    misses: torch.Tensor,
    num_hits: torch.Tensor,
    num_selected: torch.Tensor,
    worth: torch.Tensor,
    boost: float,
    candidates: torch.Tensor,
    candidate_values: torch.Tensor,
    num_candidates: torch.Tensor,
    most: int | None = None,
    runners_up: RunnersUp | None = None,
    load_quota: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
) -> None:
    """List one step's misses per KV head as candidates for `admit`, all requests together, and runners-up after them.

    Parameters
    ----------
    misses
        Missed pages of each request, ``[B, H, S]``, int32, in columns ``[num_hits, num_selected)``.
    num_hits, num_selected
        ``[B, H]``, int32, contiguous; see `Selected`.
    worth
        What each page is worth in this layer, ``[H, N]``, float32.
    boost
        Added to the value of every miss, as they were selected.
    candidates, candidate_values
        Written, ``[H, C]``, int32 and float32, contiguous. Candidates beyond ``C`` per head are left out, those
        of the last requests first; unused columns are not touched.
    num_candidates
        Written, ``[H]``, int32.
    most
        Misses of each request that are listed, the first ones; all by default.
    runners_up
        Pages that have no frame and might be selected next.
    load_quota
        Which candidates to offer where there is not time to load all, ``[3]``, int32: of every request's last
        ``load_quota[0] / 256`` misses only ``load_quota[1] / 65536``, and of the runners-up ``load_quota[2] / 65536``,
        drawn anew in every step. The columns of the others become -1.
    step
        Number of the step, scalar, int32, if there is a quota.
    """
    batch, heads, width = misses.shape
    runner_pages, num_runners = runners_up or (None, None)
    _gather_misses[(batch, heads)](
        misses,
        num_hits,
        num_selected,
        runner_pages,
        num_runners,
        worth,
        candidates,
        candidate_values,
        num_candidates,
        load_quota,
        step,
        boost,
        batch,
        width,
        width if most is None else most,
        0 if runner_pages is None else runner_pages.shape[2],
        candidates.shape[1],
        worth.stride(0),
        BLOCK_B=triton.next_power_of_2(batch),
        BLOCK=min(triton.next_power_of_2(width), MISSES_PER_PASS),
        QUOTA=load_quota is not None,
        RUNNERS=runner_pages is not None,
        num_warps=4,
    )


@triton.jit
def _gather_misses(
    misses,
    num_hits,
    num_selected,
    runner_pages,
    num_runners,
    worth,
    candidates,
    candidate_values,
    num_candidates,
    load_quota,
    step,
    boost,
    batch,
    width,
    most,
    room,
    columns,
    stride_wh,
    BLOCK_B: tl.constexpr,
    BLOCK: tl.constexpr,
    QUOTA: tl.constexpr,
    RUNNERS: tl.constexpr,
):
    request = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    b = tl.arange(0, BLOCK_B)
    pair = b * heads + head
    selected = tl.load(num_selected + pair, mask=b < batch, other=0)
    hits = tl.load(num_hits + pair, mask=b < batch, other=0)
    missed = tl.minimum(selected - hits, most)
    before = tl.sum(tl.where(b < request, missed, 0), 0)
    count = tl.sum(tl.where(b == request, missed, 0), 0)
    first = tl.sum(tl.where(b == request, hits, 0), 0)
    source = misses + (request.to(tl.int64) * heads + head) * width + first
    target = head * columns + before
    i = tl.arange(0, BLOCK)
    for start in range(0, count, BLOCK):
        column = start + i
        taken = (column < count) & (before + column < columns)
        page = tl.load(source + column, mask=taken, other=0)
        value = tl.load(worth + head * stride_wh + page, mask=taken, other=0.0) + boost
        if QUOTA:
            free = count - (count * tl.load(load_quota) >> 8)
            drawn = (tl.randint(tl.load(step), page) >> 16 & 0xFFFF) < tl.load(load_quota + 1)
            page = tl.where((column < free) | drawn, page, -1)
        tl.store(candidates + target + column, page, mask=taken)
        tl.store(candidate_values + target + column, value, mask=taken)
    listed = tl.sum(missed, 0)
    if RUNNERS:
        runners = tl.load(num_runners + pair, mask=b < batch, other=0)
        at = listed + tl.sum(tl.where(b < request, runners, 0), 0)
        count = tl.sum(tl.where(b == request, runners, 0), 0)
        listed += tl.sum(runners, 0)
        source = runner_pages + (request.to(tl.int64) * heads + head) * room
        target = head * columns + at
        for start in range(0, count, BLOCK):
            column = start + i
            taken = (column < count) & (at + column < columns)
            page = tl.load(source + column, mask=taken, other=0)
            value = tl.load(worth + head * stride_wh + page, mask=taken, other=0.0)
            if QUOTA:
                drawn = (tl.randint(tl.load(step), page) >> 16 & 0xFFFF) < tl.load(load_quota + 2)
                page = tl.where(drawn, page, -1)
            tl.store(candidates + target + column, page, mask=taken)
            tl.store(candidate_values + target + column, value, mask=taken)
    if request == batch - 1:
        tl.store(num_candidates + head, tl.minimum(listed, columns))
