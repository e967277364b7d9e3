"""Fetch and Split: what becomes of a step's misses while the main stream attends the hits."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from rheo_kernels.triton import attend_fetch, merge
from rheo_sglang.cuda.buffers import StepBuffers
from rheo_sglang.cuda.residency import CudaResidency
from rheo_sglang.cuda.streams import SideStream


class MissPath(ABC):
    """Attends and admits the misses of one layer on side streams.

    Parameters
    ----------
    residency
        Admits pages; knows page table and pools.
    ranking
        Stream that updates importance, by which pages are admitted.
    page_size
        Tokens per page.
    """

    def __init__(self, residency: CudaResidency, ranking: SideStream, page_size: int) -> None:
        self.residency = residency
        self.table = residency.table
        self.ranking = ranking
        self.page_size = page_size
        self.missing = SideStream(residency.frames.device)

    @abstractmethod
    def start(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """Begin, once the selection is resolved.

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
    def finish(self, layer: int, step: StepBuffers, out: torch.Tensor) -> None:
        """Wait, and merge hits and misses into ``out``, ``[B, Hq, D]``."""
        ...


class Fetch(MissPath):
    """Misses are attended from host memory on the GPU, and those admitted fill their frames on the way."""

    def start(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """See `MissPath.start`."""
        selected = step.selected
        assert selected is not None
        with self.missing.fork():
            self.ranking.join()
            self.table.policy.touch(layer, selected.pages)
            self.residency.admit_missed(layer, step)
            attend_fetch(
                q,
                self.residency.frames[layer],
                self.residency.host[layer],
                selected.misses,
                selected.valid,
                selected.num_hits,
                selected.num_selected,
                self.table.frame_of[layer],
                scale,
                self.page_size,
                step.misses,
            )

    def finish(self, layer: int, step: StepBuffers, out: torch.Tensor) -> None:
        """See `MissPath.finish`."""
        self.missing.join()
        merge(step.hits, step.misses, out)


class Split(MissPath):
    """Misses are attended on the CPU; those admitted are loaded behind the layers that follow."""

    def __init__(self, residency: CudaResidency, ranking: SideStream, page_size: int) -> None:
        super().__init__(residency, ranking, page_size)
        device = residency.frames.device
        self.admitting, self.loading = SideStream(device), SideStream(device)

    def start(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        """See `MissPath.start`."""
        selected = step.selected
        assert selected is not None and step.cpu is not None
        with self.missing.fork():
            step.cpu(layer, q, selected, selected.num_hits, selected.num_selected, scale)
        with self.admitting.fork():
            self.ranking.join()
            self.table.policy.touch(layer, selected.pages)
            admitted = self.residency.admit_missed(layer, step)
            with self.loading.fork():
                self.residency.load(layer, admitted)

    def finish(self, layer: int, step: StepBuffers, out: torch.Tensor) -> None:
        """See `MissPath.finish`; the last layer also waits for what the others load."""
        assert step.cpu is not None
        self.admitting.join()
        self.missing.join()
        count = out.shape[0]
        merge(step.hits, None, out, host_out=step.cpu.out[:count], host_lse=step.cpu.lse[:count])
        if layer == len(self.residency.frames) - 1:
            self.loading.join()
