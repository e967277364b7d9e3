"""CpuMissPath: the CPU attends all misses, by a host function between two kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rheo_kernels.triton import merge
from rheo_kernels.types import Tail
from rheo_sglang.cpu_offload.cpu_attention import CpuAttention, default_cpu_threads
from rheo_sglang.decode.buffers import SparseBuffers
from rheo_sglang.decode.engine import EngineInputs
from rheo_sglang.decode.gpu_residency import GpuResidency
from rheo_sglang.decode.miss_path import MissPath
from rheo_sglang.decode.triton_attention import TritonAttention
from rheo_sglang.streams import SideStream


def make_cpu_attention(inputs: EngineInputs, batch: int, width: int) -> CpuAttention:
    """The CPU's side for up to ``batch`` requests with lists of up to ``width`` pages."""
    return CpuAttention(
        inputs.host,
        batch,
        inputs.heads.group,
        width,
        inputs.page_size,
        inputs.config.cpu_threads or default_cpu_threads(),
        inputs.frames.device.type == "cuda",
        inputs.computed_in,
    )


@dataclass(frozen=True)
class CpuBuffers:
    """What the CPU attends, for up to as many requests as it was made for."""

    cpu: CpuAttention

    def views(self, batch: int, width: int) -> CpuAttention:
        """See `PathBuffers.views`; the rows beyond ``batch`` are not touched."""
        return self.cpu


class CpuMissPath(MissPath[TritonAttention, CpuAttention]):
    """Misses are attended on the CPU; those admitted are loaded while the layers that follow run."""

    route = "cpu"

    def __init__(self, inputs: EngineInputs, residency: GpuResidency, attention: TritonAttention) -> None:
        super().__init__(inputs, residency, attention)
        self.cpu_stream = SideStream(residency.frames.device)

    def make_buffers(self, batch: int, width: int) -> CpuBuffers:
        """See `MissPath.make_buffers`."""
        return CpuBuffers(make_cpu_attention(self.inputs, batch, width))

    def start(self, layer: int, step: SparseBuffers[CpuAttention], q: torch.Tensor, scale: float) -> None:
        """See `MissPath.start`."""
        selected = step.selected[layer]
        with self.cpu_stream.fork():
            step.path(layer, q, selected, selected.num_hits, selected.num_selected, scale)
        with self.admission_stream.fork():
            admitted = self._admit(layer, step)
            with self.load_stream.fork():
                self.residency.load(layer, admitted)

    def finish(
        self,
        layer: int,
        step: SparseBuffers[CpuAttention],
        q: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        tail: Tail | None,
    ) -> None:
        """See `MissPath.finish`."""
        hits = self.attention.hits(layer, step.selected[layer], q, scale, step.workspace)
        left_out = self.attention.tail(tail, step.workspace)
        self.cpu_stream.join()
        count = out.shape[0]
        host = step.path.out[:count], step.path.lse[:count]
        coverage = None if tail is None else tail.coverage
        factor = self.attention.scales[layer].v
        merge(
            hits,
            None,
            out,
            host_out=host[0],
            host_lse=host[1],
            tail=left_out,
            coverage=coverage,
            factor=factor,
        )
