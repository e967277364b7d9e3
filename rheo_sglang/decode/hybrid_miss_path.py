"""HybridMissPath: the attention kernel fetches a part of the misses while the CPU attends the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rheo_kernels.cuda.load import Candidates
from rheo_kernels.triton import fill
from rheo_kernels.types import Tail
from rheo_sglang.cpu_offload.cores import keep_to_spare_cores
from rheo_sglang.cpu_offload.service import CpuService, miss_report
from rheo_sglang.decode.buffers import SparseBuffers, StagedPages
from rheo_sglang.decode.costs import ALL_ON_CPU, measure_costs, only_cpu
from rheo_sglang.decode.cpu_miss_path import make_cpu_attention
from rheo_sglang.decode.cuda_attention import CudaAttention
from rheo_sglang.decode.engine import CpuUse, EngineInputs
from rheo_sglang.decode.gpu_residency import GpuResidency
from rheo_sglang.decode.miss_path import MissPath


@dataclass(frozen=True)
class HybridStep:
    """What the path needs for one batch size and variant.

    Attributes
    ----------
    staged
        Fetched pages, see `StagedPages`.
    cpu_begin
        Of every layer, the first column of each list that the CPU attends, ``[B, H]``, int32.
    service
        The CPU's side.
    """

    staged: torch.Tensor
    cpu_begin: list[torch.Tensor]
    service: CpuService


@dataclass(frozen=True)
class HybridBuffers:
    """The path's buffers for up to as many requests as they were made for.

    Attributes
    ----------
    staged, service
        See `HybridStep`.
    cpu_begin
        ``[L, X * H]``, int32.
    """

    staged: StagedPages
    cpu_begin: torch.Tensor
    service: CpuService

    def views(self, batch: int, width: int) -> HybridStep:
        """See `PathBuffers.views`."""
        lists = batch * self.staged.kv_heads
        begins = [layer[:lists].view(batch, -1) for layer in self.cpu_begin]
        return HybridStep(self.staged.views(batch, width), begins, self.service)


class HybridMissPath(MissPath[CudaAttention, HybridStep]):
    """Misses are divided such that both ways end together, by costs that are measured once.

    Fetched pages go into their frames from where they were kept. The others, and runners-up, are loaded while the
    layers that follow run, as many as the bus has time for; that is why every layer's misses are kept.

    Attributes
    ----------
    costs
        By which misses are divided, `Costs`, ``[6]``, float32, on the device.
    """

    route = "shared"
    keeps_misses = True

    def __init__(self, inputs: EngineInputs, residency: GpuResidency, attention: CudaAttention) -> None:
        super().__init__(inputs, residency, attention)
        self.costs = torch.tensor(ALL_ON_CPU, dtype=torch.float32, device=inputs.frames.device)
        self.services: list[CpuService] = []

    def make_buffers(self, batch: int, width: int) -> HybridBuffers:
        """See `MissPath.make_buffers`; the first time, costs are measured."""
        inputs, layers = self.inputs, len(self.inputs.frames)
        cpu = make_cpu_attention(inputs, batch, width)
        if not self.services:
            keep_to_spare_cores(cpu.threads)
        service = CpuService(cpu, layers, self.table.step, self.costs)
        if not self.services:
            measured = measure_costs(self.attention, service, inputs.heads)
            costs = only_cpu(measured) if inputs.config.miss_mode == "split" else measured
            self.costs.copy_(torch.tensor(costs))
        self.services.append(service)
        lists = batch * inputs.heads.kv_heads
        cpu_begin = torch.zeros((layers, lists), dtype=torch.int32, device=inputs.frames.device)
        return HybridBuffers(StagedPages(batch, width, inputs.frames), cpu_begin, service)

    def send(self, layer: int, step: SparseBuffers[HybridStep], q: torch.Tensor, scale: float) -> None:
        """Send the queries to where the CPU reads them."""
        self.attention.send_queries(q, step.path.service.prepare(layer, scale))

    def start(self, layer: int, step: SparseBuffers[HybridStep], q: torch.Tensor, scale: float) -> None:
        """See `MissPath.start`."""
        with self.admission_stream.fork():
            self._admit(layer, step, load_quota=step.path.service.load_quota[layer])

    def finish(
        self,
        layer: int,
        step: SparseBuffers[HybridStep],
        q: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        tail: Tail | None,
    ) -> None:
        """See `MissPath.finish`."""
        selected, runners_up = step.selected[layer], step.runners_up[layer]
        staged, cpu_begin = step.path.staged, step.path.cpu_begin[layer]
        offload = step.path.service.prepare(layer, scale)
        self.attention.attend(
            layer, selected, q, scale, step.workspace, out, staged, offload, cpu_begin, runners_up, tail
        )
        with self.admission_stream.fork():
            page_table, frames = self.table.frame_of[layer], self.residency.frames[layer]
            fill(staged, selected.misses, selected.num_hits, cpu_begin, page_table, frames, self.fetched)
            with self.load_stream.fork():
                candidates = [Candidates.of_misses(selected, cpu_begin, staged.shape[1])]
                if runners_up is not None:
                    candidates.append(Candidates.of_runners_up(runners_up))
                self.residency.load_admitted(layer, *candidates)

    @property
    def cpu_use(self) -> CpuUse | None:
        """See `DecodeEngine.cpu_use`; one signal is served at a time, whatever the batch size."""
        if not self.services:
            return None
        busy = sum(service.doorbell.busy_seconds for service in self.services)
        return CpuUse(self.services[0].attention.threads, busy)

    def report(self) -> dict[str, float] | None:
        """See `miss_report`."""
        return miss_report(self.services) if self.services else None
