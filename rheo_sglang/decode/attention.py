"""Attention: the kernels that select and attend the pages of a step, in CUDA C++ where it runs, else in Triton."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from rheo_kernels import triton as kernels
from rheo_kernels.cuda.offload import CpuOffload
from rheo_kernels.types import Partials, RunnersUp, Selected
from rheo_sglang.decode.buffers import StepBuffers
from rheo_sglang.decode.heads import HeadShape

logger = logging.getLogger(__name__)

Workspace = TypeVar("Workspace")


class Attention(ABC, Generic[Workspace]):
    """Selects pages, and attends them in frames and in host memory.

    Parameters
    ----------
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]``, pinned, and ``[L, H, F, 2, D * P]``.
    heads
        Heads of this rank.
    page_size
        Tokens per page.

    Attributes
    ----------
    select_resolve
        See `rheo_kernels.triton.select_resolve`. Nothing may come between it and `selected` on its stream.
    lists_runners_up
        Whether it takes ``runners_up`` and lists them.
    """

    select_resolve: Callable[..., Selected]
    lists_runners_up: bool

    def __init__(self, host: torch.Tensor, frames: torch.Tensor, heads: HeadShape, page_size: int) -> None:
        self.host = host
        self.frames = frames
        self.heads = heads
        self.page_size = page_size

    @abstractmethod
    def workspace(self, batch: int, width: int) -> Workspace:
        """Intermediate buffers for ``batch`` requests with lists of up to ``width`` pages."""
        ...

    @abstractmethod
    def selected(
        self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """Attend a step's hits, and its misses from host memory, keeping those that fit in ``step.staged``.

        Parameters
        ----------
        layer
            Layer index.
        step
            Its selection.
        q
            Queries, ``[B, Hq, D]``.
        scale
            Softmax scale.
        out
            Attention output, ``[B, Hq, D]``, written.
        """
        ...

    @abstractmethod
    def dense(
        self,
        layer: int,
        step: StepBuffers,
        q: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        page_table: torch.Tensor,
        missed_at: torch.Tensor,
        now: torch.Tensor,
    ) -> None:
        """Attend all pages of every request, wherever they are.

        Parameters
        ----------
        layer, step, q, scale, out
            See `selected`.
        page_table
            The layer's page table, ``[H, N]``, int32.
        missed_at, now
            Scalars, int32: ``missed_at`` becomes ``now`` if any page had no frame.
        """
        ...


class _TritonWorkspace(NamedTuple):
    hits: Partials
    misses: Partials


class TritonAttention(Attention[_TritonWorkspace]):
    """Attention in Triton: any shape, and any device that Triton knows."""

    select_resolve = staticmethod(kernels.select_resolve)
    lists_runners_up = False

    def workspace(self, batch: int, width: int) -> _TritonWorkspace:
        """See `Attention.workspace`."""
        pairs, group, dim = batch * self.heads.kv_heads, self.heads.group, self.heads.dim
        device = self.frames.device
        return _TritonWorkspace(
            Partials.allocate(pairs, group, dim, kernels.num_splits(pairs, width), device),
            Partials.allocate(pairs, group, dim, kernels.fetch_splits(pairs), device),
        )

    def selected(
        self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """See `Attention.selected`."""
        assert step.selected is not None
        selected = step.selected[layer]
        misses = kernels.attend_fetch(
            q,
            self.host[layer],
            selected.misses,
            selected.valid,
            selected.num_hits,
            selected.num_selected,
            scale,
            self.page_size,
            step.workspace.misses,
            step.staged,
        )
        kernels.merge(self.hits(layer, step, q, scale), misses, out)

    def hits(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> Partials:
        """Attend a step's hits only, and leave them to be merged with what is attended elsewhere."""
        assert step.selected is not None
        selected = step.selected[layer]
        return kernels.attend(
            q,
            self.frames[layer],
            selected.hits,
            selected.valid,
            scale,
            self.page_size,
            last=selected.num_hits,
            partials=step.workspace.hits,
        )

    def dense(
        self,
        layer: int,
        step: StepBuffers,
        q: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        page_table: torch.Tensor,
        missed_at: torch.Tensor,
        now: torch.Tensor,
    ) -> None:
        """See `Attention.dense`."""
        batch = step.batch
        parts = kernels.attend_dense(
            q,
            self.frames[layer],
            self.host[layer],
            batch.pages,
            batch.seq_lens,
            page_table,
            scale,
            self.page_size,
            step.workspace.hits,
            missed_at,
            now,
        )
        kernels.merge(parts, None, out)


class CudaAttention(Attention[Any]):
    """Attention in CUDA C++: one kernel that reads frames and host memory at once and merges what it finds."""

    lists_runners_up = True

    def __init__(self, host: torch.Tensor, frames: torch.Tensor, heads: HeadShape, page_size: int) -> None:
        super().__init__(host, frames, heads, page_size)
        from rheo_kernels.cuda import attend, select_resolve, send_queries

        self.kernels = attend
        self.send_queries = send_queries.send_queries
        self.select_resolve = select_resolve.select_resolve

    def workspace(self, batch: int, width: int) -> Any:
        """See `Attention.workspace`."""
        heads = self.heads
        pairs = batch * heads.kv_heads
        return self.kernels.Workspace.allocate(
            pairs, heads.group, heads.dim, self.page_size, width, self.frames.device
        )

    def selected(
        self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """See `Attention.selected`; misses are offloaded if there is a ``step.service``, which has the queries then."""
        assert step.selected is not None and step.cpu_begin is not None
        offload = None if step.service is None else step.service.prepare(layer, scale)
        selected, cpu_begin = step.selected[layer], step.cpu_begin[layer]
        runners_up = None if step.runners_up is None else step.runners_up[layer]
        self.attend(
            layer, selected, q, scale, step.workspace, out, step.staged, offload, cpu_begin, runners_up
        )

    def attend(
        self,
        layer: int,
        selected: Selected,
        q: torch.Tensor,
        scale: float,
        workspace: Any,
        out: torch.Tensor,
        staged: torch.Tensor | None,
        offload: CpuOffload | None,
        cpu_begin: torch.Tensor,
        runners_up: RunnersUp | None = None,
    ) -> None:
        """`selected`, of any selection; see `rheo_kernels.cuda.attend.attend_selected`.

        With an ``offload``, the queries have been sent.
        """
        self.kernels.attend_selected(
            q,
            self.frames[layer],
            self.host[layer],
            selected,
            scale,
            self.page_size,
            workspace,
            out,
            staged,
            offload,
            cpu_begin,
            layer,
            runners_up,
        )

    def dense(
        self,
        layer: int,
        step: StepBuffers,
        q: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        page_table: torch.Tensor,
        missed_at: torch.Tensor,
        now: torch.Tensor,
    ) -> None:
        """See `Attention.dense`."""
        self.kernels.attend_dense(
            q,
            self.frames[layer],
            self.host[layer],
            step.batch.pages,
            step.batch.seq_lens,
            page_table,
            scale,
            self.page_size,
            step.workspace,
            out,
            missed_at,
            now,
        )


def make_attention(
    host: torch.Tensor, frames: torch.Tensor, heads: HeadShape, page_size: int
) -> Attention[Any]:
    """The fastest attention that serves this shape on the frames' device."""
    if frames.device.type != "cuda":
        return TritonAttention(host, frames, heads, page_size)
    from rheo_kernels.cuda.attend import unsupported

    reason = unsupported(heads.dim, page_size, heads.group, frames.dtype, frames.device)
    if reason is None:
        return CudaAttention(host, frames, heads, page_size)
    logger.info("rheo: decode attention runs in Triton, not in CUDA C++: %s", reason)
    return TritonAttention(host, frames, heads, page_size)
