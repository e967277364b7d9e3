"""admit: frames for missed pages, taken from the least valuable resident ones."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.keys import NO_KEY, cuts, tally, to_keys
from rheo_kernels.triton.launch import row_warps
from rheo_kernels.types import Admitted

CLAIMED = tl.constexpr(-2)
"""Page-table entry of a candidate while its admission is being decided; like -1, it means no frame."""

MOST_COUNTED = 2**16 - 1
"""Candidates and frames of a row: what the 16-bit counts of the threshold search hold."""


def admit(
    candidates: torch.Tensor,
    candidate_values: torch.Tensor,
    page_table: torch.Tensor,
    page_of: torch.Tensor,
    frame_values: torch.Tensor,
    num_candidates: torch.Tensor | None = None,
    out: Admitted | None = None,
) -> Admitted:
    """Give candidates frames and publish them in the page table, keeping the most valuable pages resident.

    Admits as many candidates as the reference does, the most valuable ones, into the least valuable frames;
    which of these pages gets which of these frames is not specified. A row is one KV head of one layer, so
    ``R = H``, or ``R = L * H`` to admit into every layer at once.

    Parameters
    ----------
    candidates
        Logical pages, ``[R, C]``, int32 (a stride of 0 over ``R`` is fine); -1 and the padding page 0 = none;
        resident pages are ignored, repeats count once and must be worth the same.
    candidate_values
        What each candidate is worth, ``[R, C]``, float32; ``-inf`` is never admitted.
    page_table
        ``[R, N]``, int32; updated.
    page_of
        Page in each frame, ``[R, F]``, int32, -1 = free; updated.
    frame_values
        What each frame's page is worth, ``[R, F]``, float32: ``-inf`` if free, ``inf`` if pinned.
    num_candidates
        Columns that hold candidates, the first ones, ``[R]``, int32; all by default. Where there are none, the frames'
        values are not looked at.
    out
        Result buffers of ``C`` columns, contiguous.

    Raises
    ------
    ValueError
        Beyond `MOST_COUNTED` candidates or frames a row.

    Returns
    -------
    Admitted
        The new residents. Their frames hold the previous pages' data until they are loaded.

    Notes
    -----
    One program per row searches the value at which as many frames are worth less as candidates are worth
    more, instead of sorting either. Repeats are recognised by claiming pages in the page table; there is a
    candidate for every thread, since threads that share one would each claim it.
    """
    rows, columns = candidates.shape
    num_frames = page_of.shape[1]
    if max(columns, num_frames) > MOST_COUNTED:
        raise ValueError(
            f"{columns} candidates for {num_frames} frames are too many; allowed: up to {MOST_COUNTED}"
        )
    if out is None:
        out = Admitted.allocate(rows, columns, candidates.device)
    block_f = triton.next_power_of_2(num_frames)
    warps = row_warps(max(triton.next_power_of_2(columns), block_f))
    block_c = max(triton.next_power_of_2(columns), 32 * warps)
    _admit[(rows,)](
        candidates,
        candidate_values,
        page_table,
        page_of,
        frame_values,
        num_candidates,
        *out,
        columns,
        num_frames,
        candidates.stride(0),
        candidate_values.stride(0),
        page_table.stride(0),
        page_of.stride(0),
        frame_values.stride(0),
        BLOCK_C=block_c,
        BLOCK_F=block_f,
        COUNTED=num_candidates is not None,
        num_warps=warps,
    )
    return out


@triton.jit
def _admit(
    candidates,
    candidate_values,
    page_table,
    page_of,
    frame_values,
    num_candidates,
    out_pages,
    out_frames,
    out_counts,
    columns,
    num_frames,
    stride_cr,
    stride_vr,
    stride_tr,
    stride_pr,
    stride_fr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
    COUNTED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    table = page_table + row * stride_tr
    column = tl.arange(0, BLOCK_C)
    offered = column < columns
    if COUNTED:
        offered = column < tl.load(num_candidates + row)
    page = tl.load(candidates + row * stride_cr + column, mask=offered, other=-1)
    worth = tl.load(candidate_values + row * stride_vr + column, mask=offered, other=float("-inf"))
    eligible = (page > 0) & (worth > float("-inf"))
    resident = tl.load(table + page, mask=eligible, other=0) >= 0
    eligible = eligible & (resident == 0)
    admitted = 0
    pages_out = out_pages + row * columns
    frames_out = out_frames + row * columns
    if tl.sum(eligible.to(tl.int32), 0) > 0:
        claim = tl.full([BLOCK_C], CLAIMED, tl.int32)
        before = tl.atomic_xchg(table + page, claim, mask=eligible, sem="relaxed")
        eligible = eligible & (before != CLAIMED)
        wants = tl.where(eligible, to_keys(worth), NO_KEY)

        frame = tl.arange(0, BLOCK_F)
        exists = frame < num_frames
        value = tl.load(frame_values + row * stride_fr + frame, mask=exists, other=0.0)
        keeps = to_keys(value)

        threshold, above, below = _balance(wants, eligible, keeps, exists)
        admitted = tl.maximum(above, below)
        wins = _take(eligible & (wants > threshold), eligible & (wants == threshold), admitted - above)
        yields = _take(exists & (keeps < threshold), exists & (keeps == threshold), admitted - below)
        place = tl.cumsum(wins.to(tl.int32), 0) - 1
        seat = tl.cumsum(yields.to(tl.int32), 0) - 1
        tl.store(pages_out + place, page, mask=wins)
        tl.store(frames_out + seat, frame, mask=yields)
        tl.store(table + page, tl.full([BLOCK_C], -1, tl.int32), mask=eligible & (wins == 0))
        tl.debug_barrier()

        settled = column < admitted
        page = tl.load(pages_out + column, mask=settled, other=-1)
        target = tl.load(frames_out + column, mask=settled, other=-1)
        displaced = tl.load(page_of + row * stride_pr + target, mask=settled, other=-1)
        tl.store(table + displaced, tl.full([BLOCK_C], -1, tl.int32), mask=settled & (displaced >= 0))
        tl.store(page_of + row * stride_pr + target, page, mask=settled)
        tl.store(table + page, target, mask=settled)
    tl.store(out_counts + row, admitted)


@triton.jit
def _balance(wants, eligible, keeps, exists):
    """Find a key at which as many frames are worth at most it as candidates are worth more than it.

    Where equal keys rule that out, it is the least key with no fewer such frames than such candidates.

    Parameters
    ----------
    wants, eligible
        Candidates' keys (int32) and which of them count.
    keeps, exists
        Frames' keys (int32) and which of them count.

    Returns
    -------
    tuple
        The key, how many candidates are worth more, and how many frames less than it. The greater of the two
        counts is how many candidates are admitted; the other side makes up the number from keys equal to it.
    """
    low = tl.min(tl.where(eligible, wants, 0x7FFFFFFF), 0).to(tl.int64)
    low = tl.minimum(low, tl.min(tl.where(exists, keeps, 0x7FFFFFFF), 0).to(tl.int64)) - 1
    high = tl.max(tl.where(eligible, wants, NO_KEY), 0).to(tl.int64)
    settled = False
    while (low + 1 < high) & (settled == 0):
        first, second, third, fourth = cuts(low, high)
        more = tl.sum(tl.where(eligible, tally(wants, first + 1, second + 1, third + 1, fourth + 1), 0), 0)
        less = tl.sum(
            tl.where(
                exists, 0x0001000100010001 - tally(keeps, first + 1, second + 1, third + 1, fourth + 1), 0
            ),
            0,
        )
        low, high, settled = _narrow(low, high, settled, first, more & 0xFFFF, less & 0xFFFF)
        low, high, settled = _narrow(low, high, settled, second, (more >> 16) & 0xFFFF, (less >> 16) & 0xFFFF)
        low, high, settled = _narrow(low, high, settled, third, (more >> 32) & 0xFFFF, (less >> 32) & 0xFFFF)
        low, high, settled = _narrow(low, high, settled, fourth, (more >> 48) & 0xFFFF, (less >> 48) & 0xFFFF)
    key = high.to(tl.int32)
    above = tl.sum((eligible & (wants > key)).to(tl.int32), 0)
    below = tl.sum((exists & (keeps < key)).to(tl.int32), 0)
    return key, above, below


@triton.jit
def _narrow(low, high, settled, key, more, less):
    """Move the end of the bracket that a key with ``more`` candidates above and ``less`` frames up to it replaces."""
    inside = (key > low) & (key < high)
    enough = less >= more
    return (
        tl.where(inside & (enough == 0), key, low),
        tl.where(inside & enough, key, high),
        settled | (inside & (less == more)),
    )


@triton.jit
def _take(surely, maybe, missing):
    """Mark ``surely`` and the first ``missing`` of ``maybe``."""
    return surely | (maybe & (tl.cumsum(maybe.to(tl.int32), 0) <= missing))
