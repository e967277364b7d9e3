"""hand_over: queries and the CPU's part of a layer's misses into memory that it sees, a ring, and its answer."""

from __future__ import annotations

import ctypes

import torch

from rheo_kernels.cuda.compile import compile_kernel
from rheo_kernels.cuda.share import CLOCK, CpuShare
from rheo_kernels.reference.handed import LINE, TAG_SHIFT, TOKEN_BITS
from rheo_kernels.triton import RunnersUp, Selected

WARPS = 32
SHARED = ("entries", "counts")


class Queries(ctypes.Structure):
    """The parameter of ``send_queries``; the source says what each field is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "cpu_q")),
        *((name, ctypes.c_longlong) for name in ("stride_qb", "stride_qh")),
        ("heads", ctypes.c_int),
    )


class Arguments(ctypes.Structure):
    """The parameter of ``hand_over``; the source says what each field is."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("misses", "valid", "num_hits", "num_selected", "num_runners_up")
        ),
        *((f"cpu_{name}", ctypes.c_void_p) for name in SHARED),
        *((name, ctypes.c_void_p) for name in ("bell", "costs", "clocks", "rules", "step")),
        *((name, ctypes.c_int) for name in ("lists", "heads", "width", "cpu_width", "layer", "layers")),
    )


def defines(dim: int, group: int) -> dict[str, int]:
    """The source's macros."""
    return {
        "DIM": dim,
        "GROUP": group,
        "WARPS": WARPS,
        "LINE_WORDS": LINE,
        "TAG_SHIFT": TAG_SHIFT,
        "TOKEN_BITS": TOKEN_BITS,
        "ARGUMENTS_BYTES": ctypes.sizeof(Arguments),
        "QUERIES_BYTES": ctypes.sizeof(Queries),
        "CLOCK_BYTES": 8 * len(CLOCK),
    }


def send_queries(q: torch.Tensor, share: CpuShare) -> None:
    """Copy a layer's queries to where the CPU reads them, some time before `hand_over`.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``, two bytes an element, rows aligned to 16 bytes.
    share
        Where to.

    Raises
    ------
    ValueError
        If rows of ``q`` are not aligned.

    Notes
    -----
    Posted writes over PCIe, ``2 Hq D`` bytes a request, and a fence that waits until they are there: bound by latency.
    """
    batch, queries, dim = q.shape
    if q.data_ptr() % 16 or q.stride(0) % 8 or q.stride(1) % 8:
        raise ValueError(f"q has strides {q.stride()}; allowed: rows aligned to 16 bytes.")
    heads = share.entries.shape[1]
    arguments = Queries(q.data_ptr(), share.q.data_ptr(), q.stride(0), q.stride(1), heads)
    kernel = compile_kernel("hand_over.cu", "send_queries", defines(dim, queries // heads))
    kernel.launch((batch, 1, 1), 32 * WARPS, 0, arguments)


def hand_over(
    q: torch.Tensor, selected: Selected, share: CpuShare, layer: int, runners_up: RunnersUp | None = None
) -> None:
    """Hand the last misses of every list over, as many as the CPU's share is, ring, and wait for the answer.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, which `send_queries` sent.
    selected
        The selection, made by the kernel in front of this one in the stream.
    share
        Where to.
    layer
        The doorbell's task.
    runners_up
        What the selection left out and may be loaded where the bus has time.

    Notes
    -----
    Posted writes over PCIe, 8 bytes a miss in whole lines of 128: bound by latency. The kernel behind it may begin
    meanwhile. Does next to nothing where the CPU gets no miss.
    """
    batch, queries, dim = q.shape
    heads, width = selected.misses.shape[1:]
    arguments = Arguments(
        misses=selected.misses.data_ptr(),
        valid=selected.valid.data_ptr(),
        num_hits=selected.num_hits.data_ptr(),
        num_selected=selected.num_selected.data_ptr(),
        num_runners_up=None if runners_up is None else runners_up.counts.data_ptr(),
        **{f"cpu_{name}": getattr(share, name).data_ptr() for name in SHARED},
        bell=share.bell.data_ptr(),
        costs=share.costs.data_ptr(),
        clocks=share.clocks.data_ptr(),
        rules=share.rules.data_ptr(),
        step=share.step.data_ptr(),
        lists=batch * heads,
        heads=heads,
        width=width,
        cpu_width=share.entries.shape[2],
        layer=layer,
        layers=share.layers,
    )
    kernel = compile_kernel("hand_over.cu", "hand_over", defines(dim, queries // heads))
    kernel.launch((1, 1, 1), 32 * WARPS, 0, arguments, early=True)
