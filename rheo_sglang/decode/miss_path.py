"""MissPath: where a step's misses are attended, and how those that are admitted get into their frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch

from rheo_kernels.types import Admitted, Tail
from rheo_sglang.decode.attention import Attention
from rheo_sglang.decode.buffers import Path, PathBuffers, SparseBuffers
from rheo_sglang.decode.engine import CpuUse, EngineInputs, MissRoute
from rheo_sglang.decode.gpu_residency import GpuResidency
from rheo_sglang.streams import SideStream

Kernels = TypeVar("Kernels", bound=Attention[Any])
"""Attention kernels that the path runs on."""


class MissPath(ABC, Generic[Kernels, Path]):
    """Attends one layer's hits and misses on the main stream, and admits misses on side streams.

    Parameters
    ----------
    inputs
        What the engine is built from.
    residency
        Admits pages; knows page table and pools.
    attention
        Kernels.
    Attributes
    ----------
    route
        Where misses are attended.
    fetched
        Counts those that are read over the bus, where they are shared, scalar, int64, on the device; None: not counted.
    keeps_misses
        Whether a layer's misses are read while later layers run.
    admission_stream
        Where the tiering policy learns of the step, misses are admitted, and frames filled from the device.
    load_stream
        Where frames are filled from host memory while the layers that follow run.
    """

    route: ClassVar[MissRoute]
    fetched: torch.Tensor | None = None
    keeps_misses: ClassVar[bool] = False

    def __init__(self, inputs: EngineInputs, residency: GpuResidency, attention: Kernels) -> None:
        self.inputs = inputs
        self.residency = residency
        self.table = residency.table
        self.attention = attention
        device = residency.frames.device
        self.admission_stream, self.load_stream = SideStream(device), SideStream(device)

    @abstractmethod
    def make_buffers(self, batch: int, width: int) -> PathBuffers[Path]:
        """Buffers of this path alone, for up to ``batch`` requests with lists of up to ``width`` pages."""
        ...

    def send(self, layer: int, step: SparseBuffers[Path], q: torch.Tensor, scale: float) -> None:
        """Send what needs no selection, on the current stream; attention waits for it. Nothing by default."""
        return

    @abstractmethod
    def start(self, layer: int, step: SparseBuffers[Path], q: torch.Tensor, scale: float) -> None:
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
    def finish(
        self,
        layer: int,
        step: SparseBuffers[Path],
        q: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        tail: Tail | None,
    ) -> None:
        """Attend, once the new token is in its page, and write ``out``, ``[B, Hq, D]``; see `Attention.fetch`."""
        ...

    def join(self) -> None:
        """Wait for the layer's admission; frames may still be loading."""
        self.admission_stream.join()

    def end(self) -> None:
        """Wait for everything that a step began, before the next one."""
        self.join()
        self.load_stream.join()

    @property
    def cpu_use(self) -> CpuUse | None:
        """See `DecodeEngine.cpu_use`."""
        return None

    def report(self) -> dict[str, float] | None:
        """What misses took that are shared with the CPU; None if none are."""
        return None

    def _admit(
        self,
        layer: int,
        step: SparseBuffers[Path],
        most: int | None = None,
        load_quota: torch.Tensor | None = None,
    ) -> Admitted:
        """Tell the tiering policy of the selection, then admit; see `GpuResidency.admit_missed`."""
        batch = step.batch
        self.table.policy.on_step(layer, step.scores, step.selected[layer], batch.pages, batch.num_pages)
        return self.residency.admit_missed(layer, step, most, load_quota)
