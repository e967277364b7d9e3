"""Task: an attention call whose operands stay where they are, for host-function nodes of CUDA graphs."""

from __future__ import annotations

import torch

from rheo_kernels.cpu import _native
from rheo_kernels.cpu.problem import check_buffer, check_shapes, describe
from rheo_kernels.cpu.settings import checked_threads, forced_isa


class Task:
    """Attention over per-head lists of host pages, given as words, without Python and without the GIL.

    `function` is the address of a C function ``void (void *)`` that takes `address`, as ``cudaLaunchHostFunc``
    wants it. A call reads the batch size, queries and lists from memory, allocates nothing, and writes the first
    ``batch`` rows of ``out`` and ``lse``: ``(0, -inf)`` where nothing is listed. Calls of one task must not overlap;
    calls of different tasks may, and take turns. Words must have the tag 0 when a call begins; where a `Doorbell` runs
    the task, they have the signal's sequence number as tag and may arrive later.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]`` with ``B`` the largest batch; the last dimension contiguous.
    blocks
        Page blocks ``[H, X, 2, D * P]``, any strides over ``H`` and ``X``.
    entries
        Words for the pages to attend, ``[B, H, S]``, int64, contiguous; see `rheo_kernels.types.offload_words`.
    counts
        Words for the number of each list's pages, ``[B, H]``, int64, contiguous.
    scale
        Softmax scale.
    page_size
        Tokens per page: 16, 32 or 64.
    out, lse
        Results, ``[B, Hq, D]`` and ``[B, Hq]``, float32, contiguous.
    batch
        Requests of the call, ``[1]``, int32; read at every call, values beyond ``B`` count as ``B``.
    threads
        Threads to use, the caller among them; None for `default_threads`.

    Raises
    ------
    ValueError
        If an operand, ``RHEO_CPU_ISA`` or ``RHEO_CPU_THREADS`` is not one the kernels take.
    """

    def __init__(
        self,
        q: torch.Tensor,
        blocks: torch.Tensor,
        entries: torch.Tensor,
        counts: torch.Tensor,
        scale: float,
        page_size: int,
        out: torch.Tensor,
        lse: torch.Tensor,
        batch: torch.Tensor,
        threads: int | None = None,
    ) -> None:
        check_shapes(q, blocks, page_size)
        lists = q.shape[0], blocks.shape[0]
        check_buffer("entries", entries, (*lists, entries.shape[-1]), torch.int64)
        check_buffer("counts", counts, lists, torch.int64)
        for name, operand in (("q", q), ("blocks", blocks)):
            if operand.device.type != "cpu" or operand.stride(-1) != 1:
                raise ValueError(
                    f"{name} is on {operand.device.type} with strides {operand.stride()}; "
                    "allowed: host memory with the last dimension contiguous."
                )
        check_buffer("out", out, tuple(q.shape), torch.float32)
        check_buffer("lse", lse, tuple(q.shape[:2]), torch.float32)
        check_buffer("batch", batch, (1,), torch.int32)
        self._operands = (q, blocks, entries, counts, out, lse, batch)
        problem = describe(q, blocks, (entries, counts), scale, page_size, out, lse, batch, words=True)
        self._task = _native.Task(problem, checked_threads(threads), forced_isa())

    def __call__(self) -> None:
        """Run the task here, without the GIL."""
        self._task.run()

    @property
    def address(self) -> int:
        """Address of the task; it does not change while the object lives."""
        return self._task.address

    @property
    def function(self) -> int:
        """Address of the C function ``void (void *)`` that runs a task."""
        return _native.task_function

    @property
    def isa(self) -> str:
        """Instruction-set variant that serves the task."""
        return self._task.isa

    @property
    def threads(self) -> int:
        """Threads of the task, the caller among them."""
        return self._task.threads

    @property
    def missing_blocks(self) -> int:
        """Listed blocks that do not exist, in all calls so far; they were left out."""
        return self._task.missing_blocks
