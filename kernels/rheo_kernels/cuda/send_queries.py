"""send_queries: copy a layer's queries to where the CPU reads them, before its pages are offloaded."""

from __future__ import annotations

import ctypes

import torch

from rheo_kernels.cuda.compile import compile_kernel
from rheo_kernels.cuda.offload import CpuOffload

WARPS = 32


class Arguments(ctypes.Structure):
    """The kernel's parameter; the source says what each field is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "cpu_q")),
        *((name, ctypes.c_longlong) for name in ("stride_qb", "stride_qh")),
    )


def defines(queries: int, dim: int) -> dict[str, int]:
    """The source's macros."""
    return {
        "QUERY_ELEMENTS": queries * dim,
        "DIM": dim,
        "WARPS": WARPS,
        "ARGUMENTS_BYTES": ctypes.sizeof(Arguments),
    }


def send_queries(q: torch.Tensor, offload: CpuOffload) -> None:
    """Copy a layer's queries to where the CPU reads them, before the selection is attended.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``, two bytes an element, rows aligned to 16 bytes.
    offload
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
    arguments = Arguments(q.data_ptr(), offload.q.data_ptr(), q.stride(0), q.stride(1))
    kernel = compile_kernel("send_queries.cu", "send_queries", defines(queries, dim))
    kernel.launch((batch, 1, 1), 32 * WARPS, 0, arguments)
