"""Fetch, Split, Both: where a step's misses are attended, and how those that are admitted get into their frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from rheo_kernels.cuda.load import Candidates
from rheo_kernels.triton import fill, merge
from rheo_sglang.decode.attention import Attention, CudaAttention, TritonAttention
from rheo_sglang.decode.buffers import StepBuffers
from rheo_sglang.decode.gpu_residency import CudaResidency
from rheo_sglang.decode.streams import SideStream


class MissPath(ABC):
    """Attends one layer's hits and misses on the main stream, and admits misses beside it.

    Parameters
    ----------
    residency
        Admits pages; knows page table and pools.
    attention
        Kernels.
    behind
        Stream on which importance is updated and pages are admitted.
    """

    def __init__(self, residency: CudaResidency, attention: Attention[Any], behind: SideStream) -> None:
        self.residency = residency
        self.table = residency.table
        self.attention = attention
        self.behind = behind
        self.loading = SideStream(residency.frames.device)

    @abstractmethod
    def send(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """Send ahead what needs no selection, on the current stream; attention waits for it."""
        ...

    @abstractmethod
    def start(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """Begin what needs only the resolved selection.

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
        """
        ...

    @abstractmethod
    def finish(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """Attend, once the new token is in its page, and write ``out``, ``[B, Hq, D]``."""
        ...

    def _tell_policy(self, layer: int, step: StepBuffers) -> None:
        assert step.selected is not None and step.scores is not None
        batch = step.batch
        self.table.policy.on_step(layer, step.scores, step.selected[layer], batch.pages, batch.num_pages)

    def join(self) -> None:
        """Wait for what goes on behind a layer; frames may still be filling."""
        self.behind.join()

    def end(self) -> None:
        """Wait for everything that a step began, before the next one."""
        self.join()
        self.loading.join()


class Fetch(MissPath):
    """The kernel that attends the hits reads the misses from host memory, and keeps them for their frames.

    Runners-up are loaded behind the layers that follow.
    """

    def send(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """Nothing goes ahead."""

    def start(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """See `MissPath.start`."""
        assert step.selected is not None and step.staged is not None
        with self.behind.fork():
            self._tell_policy(layer, step)
            self.residency.admit_missed(layer, step, most=step.staged.shape[1])

    def finish(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """See `MissPath.finish`."""
        assert step.selected is not None and step.staged is not None
        selected = step.selected[layer]
        self.attention.selected(layer, step, q, scale, out)
        with self.behind.fork():
            fill(
                step.staged,
                selected.misses,
                selected.num_hits,
                selected.num_selected,
                self.table.frame_of[layer],
                self.residency.frames[layer],
            )
            if step.runners_up is not None:
                with self.loading.fork():
                    self.residency.load_admitted(layer, Candidates.of_runners_up(step.runners_up[layer]))


class Split(MissPath):
    """Misses are attended on the CPU; those admitted are loaded behind the layers that follow."""

    def __init__(self, residency: CudaResidency, attention: Attention[Any], behind: SideStream) -> None:
        super().__init__(residency, attention, behind)
        self.missing = SideStream(residency.frames.device)

    def send(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """Nothing goes ahead."""

    def start(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """See `MissPath.start`."""
        assert step.selected is not None and step.cpu is not None
        selected = step.selected[layer]
        with self.missing.fork():
            step.cpu(layer, q, selected, selected.num_hits, selected.num_selected, scale)
        with self.behind.fork():
            self._tell_policy(layer, step)
            admitted = self.residency.admit_missed(layer, step)
            with self.loading.fork():
                self.residency.load(layer, admitted)

    def finish(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """See `MissPath.finish`."""
        assert step.cpu is not None and isinstance(self.attention, TritonAttention)
        hits = self.attention.hits(layer, step, q, scale)
        self.missing.join()
        count = out.shape[0]
        merge(hits, None, out, host_out=step.cpu.out[:count], host_lse=step.cpu.lse[:count])


class Both(MissPath):
    """The attention kernel fetches a part of the misses and has the CPU attend the rest, until both are done.

    Fetched pages go into their frames from where they were kept; the others, and runners-up, are loaded behind the
    layers that follow, as many as the bus has time for.
    """

    def send(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """Send the queries to where the CPU reads them."""
        assert isinstance(self.attention, CudaAttention) and step.service is not None
        self.attention.send_queries(q, step.service.prepare(layer, scale))

    def start(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """See `MissPath.start`."""
        assert step.selected is not None and step.service is not None
        with self.behind.fork():
            self._tell_policy(layer, step)
            self.residency.admit_missed(layer, step, load_quota=step.service.load_quota[layer])

    def finish(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """See `MissPath.finish`."""
        assert step.selected is not None and step.cpu_begin is not None and step.staged is not None
        self.attention.selected(layer, step, q, scale, out)
        selected, cpu_begin, staged = step.selected[layer], step.cpu_begin[layer], step.staged
        page_table, frames = self.table.frame_of[layer], self.residency.frames[layer]
        with self.behind.fork():
            fill(staged, selected.misses, selected.num_hits, cpu_begin, page_table, frames)
            with self.loading.fork():
                misses = Candidates.of_misses(selected, cpu_begin, staged.shape[1])
                ahead = () if step.runners_up is None else (Candidates.of_runners_up(step.runners_up[layer]),)
                self.residency.load_admitted(layer, misses, *ahead)
