"""load and save: whole page blocks between host pages in mapped pinned memory and frames."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOADERS = 64
"""Programs that load: enough 16 KB reads in flight to fill PCIe, few enough to leave the GPU to attention."""
CHUNK_ELEMENTS = 8192


def load(
    host: torch.Tensor,
    frames: torch.Tensor,
    pages: torch.Tensor,
    targets: torch.Tensor,
    counts: torch.Tensor,
) -> None:
    """Copy host pages into frames. A row is one KV head of one of ``L`` layers, ``R = L * H``.

    Parameters
    ----------
    host
        Host pages, ``[L, N, H, 2, D * P]`` (or one layer's, without ``L``), pinned.
    frames
        Frames, ``[L, H, F, 2, D * P]`` (or one layer's, without ``L``); written.
    pages, targets
        Logical page and frame of each copy, ``[R, C]``, int32, contiguous; targets of a row are distinct.
    counts
        Copies of each row, the first columns, ``[R]``, int32.

    Notes
    -----
    Reads ``2 * D * P`` elements a copy over PCIe, 16 bytes a thread, a whole page in flight per program.
    """
    host, frames = _with_layers(host), _with_layers(frames)
    rows, columns = pages.shape
    elements = host.shape[3] * host.shape[4]
    _load[(max(LOADERS // rows, 1), rows)](
        host,
        frames,
        pages,
        targets,
        counts,
        columns,
        host.shape[2],
        host.stride(0),
        host.stride(1),
        host.stride(2),
        frames.stride(0),
        frames.stride(1),
        frames.stride(2),
        ELEMENTS=elements,
        CHUNK=min(triton.next_power_of_2(elements), CHUNK_ELEMENTS),
        num_warps=4,
    )


def save(
    frames: torch.Tensor,
    host: torch.Tensor,
    page_table: torch.Tensor,
    pages: torch.Tensor,
) -> None:
    """Copy resident pages, in every KV head (of every layer, if there are layers), to their host pages.

    Parameters
    ----------
    frames
        Frames, ``[L, H, F, 2, D * P]`` (or one layer's, without ``L``).
    host
        Host pages, ``[L, N, H, 2, D * P]`` (or one layer's, without ``L``), pinned; written.
    page_table
        ``[L, H, N]`` (or one layer's, without ``L``), int32.
    pages
        Logical pages, ``[X]``, integer; entries up to 0, and pages without a frame, are skipped.
    """
    if page_table.dim() == 2:
        page_table = page_table.unsqueeze(0)
    host, frames = _with_layers(host), _with_layers(frames)
    elements = host.shape[3] * host.shape[4]
    layers, _, heads = host.shape[:3]
    _save[(pages.shape[0], heads, layers)](
        frames,
        host,
        page_table,
        pages,
        frames.stride(0),
        frames.stride(1),
        frames.stride(2),
        host.stride(0),
        host.stride(1),
        host.stride(2),
        page_table.stride(0),
        page_table.stride(1),
        ELEMENTS=elements,
        CHUNK=min(triton.next_power_of_2(elements), CHUNK_ELEMENTS),
        num_warps=4,
    )


def _with_layers(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.unsqueeze(0) if blocks.dim() == 4 else blocks


@triton.jit
def copy_block(source, target, ELEMENTS: tl.constexpr, CHUNK: tl.constexpr):
    """Copy one block of ``ELEMENTS`` elements, ``CHUNK`` at a time."""
    i = tl.arange(0, CHUNK)
    for start in tl.static_range(0, ELEMENTS, CHUNK):
        inside = start + i < ELEMENTS
        tl.store(target + start + i, tl.load(source + start + i, mask=inside), mask=inside)


@triton.jit
def _load(
    host,
    frames,
    pages,
    targets,
    counts,
    columns,
    heads,
    stride_hl,
    stride_hn,
    stride_hh,
    stride_fl,
    stride_fh,
    stride_ff,
    ELEMENTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    source = host + (row // heads) * stride_hl + (row % heads) * stride_hh
    target = frames + (row // heads) * stride_fl + (row % heads) * stride_fh
    for column in range(tl.program_id(0), tl.load(counts + row), tl.num_programs(0)):
        page = tl.load(pages + row * columns + column).to(tl.int64)
        frame = tl.load(targets + row * columns + column).to(tl.int64)
        copy_block(source + page * stride_hn, target + frame * stride_ff, ELEMENTS, CHUNK)


@triton.jit
def _save(
    frames,
    host,
    page_table,
    pages,
    stride_fl,
    stride_fh,
    stride_ff,
    stride_hl,
    stride_hn,
    stride_hh,
    stride_tl,
    stride_th,
    ELEMENTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    page = tl.load(pages + tl.program_id(0)).to(tl.int64)
    if page > 0:
        head = tl.program_id(1).to(tl.int64)
        layer = tl.program_id(2).to(tl.int64)
        frame = tl.load(page_table + layer * stride_tl + head * stride_th + page).to(tl.int64)
        if frame >= 0:
            copy_block(
                frames + layer * stride_fl + head * stride_fh + frame * stride_ff,
                host + layer * stride_hl + page * stride_hn + head * stride_hh,
                ELEMENTS,
                CHUNK,
            )
