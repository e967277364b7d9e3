"""attend: decode attention over per-head lists of host pages, as a partial with its LSE."""

from __future__ import annotations

import torch

from rheo_kernels.cpu import _native
from rheo_kernels.cpu.problem import check_lists, check_shapes, describe, is_packed
from rheo_kernels.cpu.settings import checked_threads, forced_isa


def attend(
    q: torch.Tensor,
    blocks: torch.Tensor,
    index: torch.Tensor,
    valid: torch.Tensor,
    scale: float,
    page_size: int,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    threads: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend one query token per request to the listed pages of each KV head, on the CPU.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, in the dtype of the blocks or float32, or where these are of 8 bits in any of the
        others; moved to the CPU if they are not there.
    blocks
        Page blocks ``[H, X, 2, D * P]`` in host memory, any strides over ``H`` and ``X``; float32, bfloat16,
        float16 or float8_e4m3fn.
    index
        Blocks to attend, ``[B, H, S]``, int32, -1 = none. No block is listed twice for one request and head.
    valid
        Tokens of each listed block to attend, ``[B, H, S]``, int32.
    scale
        Softmax scale.
    page_size
        Tokens per page: 16, 32 or 64.
    out, lse
        Result buffers, ``[B, Hq, D]`` and ``[B, Hq]``, float32.
    threads
        Threads to use, the caller among them; None for `default_threads`.

    Returns
    -------
    tuple of torch.Tensor
        Output and natural-log LSE; ``(0, -inf)`` where nothing is listed.

    Raises
    ------
    ValueError
        If an operand, ``RHEO_CPU_ISA`` or ``RHEO_CPU_THREADS`` is not one the kernels take.
    IndexError
        If a listed block does not exist.

    Notes
    -----
    Moves ``2 * D * P`` elements per listed page, once for the whole GQA group; bound by DRAM bandwidth. bfloat16
    pages, and pages of 8 bits, with bfloat16 queries are multiplied in bfloat16 with float32 sums, everything else in
    float32. Numbers of 8 bits are converted exactly on the way.
    """
    origin = q.device
    if blocks.device.type != "cpu":
        raise ValueError(f"blocks are on {blocks.device}; allowed: cpu.")
    q, index, valid = (operand.cpu() for operand in (q, index, valid))
    check_shapes(q, blocks, page_size)
    check_lists(q.shape[0], blocks.shape[0], index, valid)
    q, index, valid = (
        operand if operand.stride(-1) == 1 else operand.contiguous() for operand in (q, index, valid)
    )
    batch = torch.tensor([q.shape[0]], dtype=torch.int32)
    result, result_lse = writable(out, q.shape), writable(lse, q.shape[:2])
    problem = describe(q, blocks, (index, valid), scale, page_size, result, result_lse, batch)
    missing = _native.attend(problem, checked_threads(threads), forced_isa())
    if missing:
        raise IndexError(
            f"{missing} listed blocks do not exist; allowed: 0 to {blocks.shape[1] - 1}, -1 for none."
        )
    if out is None or lse is None:
        return result.to(origin), result_lse.to(origin)
    for buffer, part in ((out, result), (lse, result_lse)):
        if part is not buffer:
            buffer.copy_(part)
    return out, lse


def writable(buffer: torch.Tensor | None, shape: torch.Size) -> torch.Tensor:
    """The buffer if the extension can write results of this shape to it, else a new one."""
    if buffer is not None and buffer.shape == shape and buffer.dtype == torch.float32 and is_packed(buffer):
        return buffer
    return torch.empty(shape, dtype=torch.float32)
