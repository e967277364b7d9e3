"""fill: missed pages into the frames that they were admitted to, from the device or from host memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rheo_kernels.triton.select_resolve import RunnersUp
from rheo_kernels.triton.transfer import copy_block

FILLERS = 256
"""Programs that copy on the device; most find nothing to do."""
LOADERS = 64
"""Programs that copy from host memory: enough to fill PCIe, few enough to leave the GPU to attention."""
CHUNK_ELEMENTS = 8192


def fill(
    staged: torch.Tensor,
    misses: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    page_table: torch.Tensor,
    frames: torch.Tensor,
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


def fill_from_host(
    host: torch.Tensor,
    misses: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    cuts: torch.Tensor,
    room: int,
    page_table: torch.Tensor,
    frames: torch.Tensor,
) -> None:
    """Copy the host page of every miss that has a frame by now, and was not staged, into that frame.

    Parameters
    ----------
    host
        One layer's host pages, ``[N, H, 2, D * P]``, pinned.
    misses, first, last, page_table, frames
        See `fill`.
    cuts
        The first column that was not fetched, ``[B, H]``, int32, contiguous.
    room
        Fetched misses of each list that were staged, the first ones.

    Notes
    -----
    Reads ``2 * D * P`` elements per page over PCIe.
    """
    _load(host, misses, first, last, cuts, room, page_table, frames)


def load_runners_up(
    host: torch.Tensor, runners_up: RunnersUp, page_table: torch.Tensor, frames: torch.Tensor
) -> None:
    """Copy the host page of every runner-up that has a frame by now into it.

    Parameters
    ----------
    host, page_table, frames
        See `fill_from_host`.
    runners_up
        Pages that had no frame before admission.

    Notes
    -----
    Reads ``2 * D * P`` elements per page over PCIe.
    """
    _load(host, runners_up.pages, None, runners_up.counts, None, 0, page_table, frames)


def _load(
    host: torch.Tensor,
    pages: torch.Tensor,
    first: torch.Tensor | None,
    last: torch.Tensor,
    cuts: torch.Tensor | None,
    room: int,
    page_table: torch.Tensor,
    frames: torch.Tensor,
) -> None:
    heads = frames.shape[0]
    pairs = last.numel()
    elements = host.shape[2] * host.shape[3]
    _fill_from_host[(max(LOADERS // pairs, 1), pairs)](
        host,
        pages,
        first,
        last,
        cuts,
        page_table,
        frames,
        heads,
        room,
        pages.shape[2],
        host.stride(0),
        host.stride(1),
        page_table.stride(0),
        frames.stride(0),
        frames.stride(1),
        ELEMENTS=elements,
        CHUNK=min(triton.next_power_of_2(elements), CHUNK_ELEMENTS),
        CUT=cuts is not None,
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
    count = tl.minimum(tl.load(last + pair) - begin, room)
    for place in range(tl.program_id(0), count, tl.num_programs(0)):
        page = tl.load(misses + pair * width + begin + place)
        frame = tl.load(page_table + head * stride_th + page).to(tl.int64)
        if frame >= 0:
            source = staged + (pair * room + place) * ELEMENTS
            copy_block(source, frames + head * stride_fh + frame * stride_ff, ELEMENTS, CHUNK)


@triton.jit
def _fill_from_host(
    host,
    misses,
    first,
    last,
    cuts,
    page_table,
    frames,
    heads,
    room,
    width,
    stride_hn,
    stride_hh,
    stride_th,
    stride_fh,
    stride_ff,
    ELEMENTS: tl.constexpr,
    CHUNK: tl.constexpr,
    CUT: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    head = pair % heads
    begin = 0
    if CUT:
        begin = tl.minimum(tl.load(cuts + pair), tl.load(first + pair) + room)
    for column in range(begin + tl.program_id(0), tl.load(last + pair), tl.num_programs(0)):
        page = tl.load(misses + pair * width + column).to(tl.int64)
        frame = tl.load(page_table + head * stride_th + page).to(tl.int64)
        if frame >= 0:
            source = host + page * stride_hn + head * stride_hh
            copy_block(source, frames + head * stride_fh + frame * stride_ff, ELEMENTS, CHUNK)
