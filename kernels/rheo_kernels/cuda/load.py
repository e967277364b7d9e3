"""load: copy pages that were admitted from host memory into their frames, by few multiprocessors."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch

from rheo_kernels.cuda.compile import compile_kernel
from rheo_kernels.types import RunnersUp, Selected

BLOCKS = 2
"""Multiprocessors that load, an estimate: they have some 400 KB in flight, twice what 50 GB/s bring in 4 us."""
MOST_WARPS, MOST_STAGES = 4, 8
SHARED_BYTES = 229_376
"""Shared memory of one of them, at most."""
KINDS = 2
"""Kinds of candidates that a launch takes."""


class Candidates(NamedTuple):
    """Pages of every list that were to be admitted."""

    pages: torch.Tensor
    """``[B, H, X]``, int32, contiguous."""
    last: torch.Tensor
    """One past the last column, ``[B, H]``, int32, contiguous."""
    first: torch.Tensor | None = None
    """The first column, ``[B, H]``, int32, contiguous; None: 0."""
    cpu_begin: torch.Tensor | None = None
    """Columns from ``first`` up to here were fetched and are skipped, ``[B, H]``, int32, contiguous; None: none."""
    room: int = 0
    """Most columns of a list that are skipped: pages that fit in the staging buffer."""

    @classmethod
    def of_misses(cls, selected: Selected, cpu_begin: torch.Tensor, room: int) -> Candidates:
        """A selection's misses, but for those before ``cpu_begin`` that were fetched and staged, ``room`` of a list."""
        return cls(selected.misses, selected.num_selected, selected.num_hits, cpu_begin, room)

    @classmethod
    def of_runners_up(cls, runners_up: RunnersUp) -> Candidates:
        """All runners-up."""
        return cls(runners_up.pages, runners_up.counts)


class _Candidates(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("pages", "first", "cpu_begin", "last")),
        *((name, ctypes.c_int) for name in ("width", "room")),
    )


class Arguments(ctypes.Structure):
    """The kernel's parameter; the source says what each field is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("host", "frames", "page_table")),
        *((f"stride_{name}", ctypes.c_longlong) for name in ("hn", "hh", "fh", "ff", "th")),
        ("candidates", _Candidates * KINDS),
        *((name, ctypes.c_int) for name in ("lists", "heads")),
    )


def defines(block_bytes: int) -> tuple[dict[str, int], int, int]:
    """The source's macros for pages of ``block_bytes``, threads of a block, and its shared memory in bytes."""
    slots = SHARED_BYTES // block_bytes
    warps = max(min(slots // 2, MOST_WARPS), 1)
    stages = min(slots // warps, MOST_STAGES)
    macros = {
        "BLOCK_BYTES": block_bytes,
        "WARPS": warps,
        "STAGES": stages,
        "ARGUMENTS_BYTES": ctypes.sizeof(Arguments),
    }
    return macros, 32 * warps, warps * stages * block_bytes


def load_admitted(
    host: torch.Tensor, page_table: torch.Tensor, frames: torch.Tensor, *candidates: Candidates
) -> None:
    """Copy the host page of every candidate that has a frame by now into it.

    Parameters
    ----------
    host
        One layer's host pages, ``[N, H, 2, D * P]``, pinned; any dtype.
    page_table
        One layer's page table after admission, ``[H, N]``, int32.
    frames
        One layer's frames, ``[H, F, 2, D * P]``, the same dtype; written.
    candidates
        One or two kinds, which had no frames before admission.

    Raises
    ------
    ValueError
        If there are more kinds.

    Notes
    -----
    Reads ``2 * D * P`` elements per page over PCIe, which bounds it, and writes them once.
    """
    if len(candidates) > KINDS:
        raise ValueError(f"There are {len(candidates)} kinds of candidates; allowed: up to {KINDS}.")
    size = host.element_size()
    block_bytes = size * host.shape[2] * host.shape[3]
    arguments = Arguments(
        host=host.data_ptr(),
        frames=frames.data_ptr(),
        page_table=page_table.data_ptr(),
        stride_hn=size * host.stride(0),
        stride_hh=size * host.stride(1),
        stride_fh=size * frames.stride(0),
        stride_ff=size * frames.stride(1),
        stride_th=page_table.stride(0),
        lists=candidates[0].last.numel(),
        heads=frames.shape[0],
    )
    for place, each in zip(arguments.candidates, candidates, strict=False):
        place.pages, place.last = each.pages.data_ptr(), each.last.data_ptr()
        place.width, place.room = each.pages.shape[2], each.room
        for name in ("first", "cpu_begin"):
            field = getattr(each, name)
            setattr(place, name, None if field is None else field.data_ptr())
    macros, threads, shared = defines(block_bytes)
    kernel = compile_kernel("load.cu", "load", macros, shared)
    kernel.launch((BLOCKS, 1, 1), threads, shared, arguments)
