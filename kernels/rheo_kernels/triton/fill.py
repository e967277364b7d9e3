"""fill: copy missed pages that were fetched from the staging buffer into the frames they were admitted to."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.transfer import copy_block

FILLERS = 256
"""Programs that copy on the device; most find nothing to do."""
CHUNK_ELEMENTS = 8192


def fill(
    staged: torch.Tensor,
    misses: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    page_table: torch.Tensor,
    frames: torch.Tensor,
    fetched: torch.Tensor | None = None,
) -> None:
    """Copy every staged page that has a frame by now into it.

    Parameters
    ----------
    staged
        Blocks of the first ``room`` misses of each list, ``[B * H, room, 2, D * P]``, contiguous.
    misses
        Missed pages, ``[B, H, S]``, int32, contiguous; see `Selected`.
    first, last
        Columns that hold those that were fetched, ``[B, H]``, int32, contiguous.
    page_table
        One layer's page table after admission, ``[H, N]``, int32.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; written.
    fetched
        Pages that were fetched, with or without room for them, scalar, int64; added to. None: not counted.

    Notes
    -----
    Reads and writes ``2 * D * P`` elements per admitted page. Requests that share one write the same data twice.
    """
    heads = frames.shape[0]
    pairs, room = staged.shape[:2]
    elements = staged.shape[2] * staged.shape[3]
    _fill[(max(min(FILLERS // pairs, room), 1), pairs)](
        staged,
        misses,
        first,
        last,
        page_table,
        frames,
        fetched,
        heads,
        room,
        misses.shape[2],
        page_table.stride(0),
        frames.stride(0),
        frames.stride(1),
        ELEMENTS=elements,
        CHUNK=min(triton.next_power_of_2(elements), CHUNK_ELEMENTS),
        num_warps=4,
    )


@triton.jit
def _fill(
    staged,
    misses,
    first,
    last,
    page_table,
    frames,
    fetched,
    heads,
    room,
    width,
    stride_th,
    stride_fh,
    stride_ff,
    ELEMENTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    head = pair % heads
    begin = tl.load(first + pair)
    listed = tl.load(last + pair) - begin
    if fetched is not None:  # noqa: SIM102 - a constant, then a value of the GPU's
        if tl.program_id(0) == 0 and listed > 0:
            tl.atomic_add(fetched, listed.to(tl.int64))
    count = tl.minimum(listed, room)
    for place in range(tl.program_id(0), count, tl.num_programs(0)):
        page = tl.load(misses + pair * width + begin + place)
        frame = tl.load(page_table + head * stride_th + page).to(tl.int64)
        if frame >= 0:
            source = staged + (pair * room + place) * ELEMENTS
            copy_block(source, frames + head * stride_fh + frame * stride_ff, ELEMENTS, CHUNK)
