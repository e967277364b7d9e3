"""CpuService: the CPU's side of attention that the GPU and the CPU share, and how long either part took."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.cpu import Doorbell
from rheo_kernels.cpu.doorbell import WORDS
from rheo_kernels.cuda.offload import TIMESTAMP_SUMS, TIMESTAMPS, CpuOffload
from rheo_sglang.cpu_offload.cpu_attention import CpuAttention

ALL = 65536
"""In `CpuOffload.load_quota`: every page may be loaded."""


class MissTotals(NamedTuple):
    """Sums over layers of decode steps that had misses; times in nanoseconds from the end of the selection on."""

    layers: float
    """Layers with misses, over all steps."""
    expected: float
    """Predicted by the cost model, until hits and misses are attended."""
    signalled: float
    """Until the CPU was signalled, or was found not to be needed."""
    gpu_done: float
    """Until the GPU had attended hits and fetched misses."""
    cpu_seen: float
    """Until the GPU had also seen the CPU's completion."""
    merged: float
    """Until the output was written."""
    offloads: float
    """Layers in which the CPU attended a part of the misses."""
    late_threads: float
    """CPU threads that began so late that another thread took the first pages dealt to them."""
    cpu_busy: float
    """Time of the CPU's part, from signal to completion."""


def miss_report(services: list[CpuService]) -> dict[str, float]:
    """Mean microseconds per layer with misses, predicted and measured; see `MissTotals`.

    Parameters
    ----------
    services
        Those of every batch size.
    """
    each = [service.totals() for service in services]
    totals = MissTotals(**{name: sum(getattr(one, name) for one in each) for name in MissTotals._fields})
    layers, offloads = max(totals.layers, 1), max(totals.offloads, 1)
    waited = totals.cpu_seen - totals.gpu_done
    return {
        "layers_with_misses": int(totals.layers),
        "layers_with_a_cpu_part": int(totals.offloads),
        "expected_us": round(totals.expected / layers / 1e3, 2),
        "signalled_us": round(totals.signalled / layers / 1e3, 2),
        "took_us": round(totals.merged / layers / 1e3, 2),
        "gpu_part_us": round(totals.gpu_done / layers / 1e3, 2),
        "cpu_part_us": round(totals.cpu_busy / offloads / 1e3, 2),
        "late_cpu_threads": round(totals.late_threads / offloads, 2),
        "gpu_waited_for_cpu_us": round(waited / layers / 1e3, 2),
        "both_worked_us": round((totals.cpu_busy - waited) / layers / 1e3, 2),
    }


class CpuService:
    """The CPU's side of attention that both do; neither driver nor Python runs between a signal and its completion.

    Parameters
    ----------
    attention
        Buffers and tasks.
    layers
        Layers of a step.
    step
        Number of the decode step, scalar, int32, on the device.
    costs
        The cost model that partitions misses, see `CpuOffload.costs`.

    Attributes
    ----------
    timings, cost_scales, load_quota
        See `CpuOffload`.
    """

    def __init__(self, attention: CpuAttention, layers: int, step: torch.Tensor, costs: torch.Tensor) -> None:
        self.attention = attention
        self.doorbell = Doorbell(torch.zeros(WORDS, dtype=torch.int32, pin_memory=step.is_cuda), layers)
        self.timings = torch.zeros((layers, len(TIMESTAMPS)), dtype=torch.int64, device=step.device)
        self.cost_scales = torch.ones((layers, 2), device=step.device)
        self.load_quota = torch.tensor([[0, ALL, ALL]] * layers, dtype=torch.int32, device=step.device)
        results = attention.out, attention.lse
        self._offloads = [
            CpuOffload(
                *buffers,
                *results,
                self.doorbell.words,
                costs,
                self.timings,
                self.cost_scales,
                self.load_quota,
                step,
                layers,
            )
            for buffers in attention.buffers
        ]
        self._scales: dict[int, float] = {}

    def prepare(self, layer: int, scale: float) -> CpuOffload:
        """Make sure that signals of a layer run its task, and return what its kernels exchange with the CPU.

        Parameters
        ----------
        layer
            Layer index.
        scale
            Softmax scale.
        """
        if self._scales.get(layer) != scale:
            self.doorbell.assign(layer, self.attention.task(layer, scale))
            self._scales[layer] = scale
        return self._offloads[layer]

    def totals(self) -> MissTotals:
        """What misses took so far, without the latest layer. Waits for the device."""
        sums = self.timings[:, -len(TIMESTAMP_SUMS) :].sum(0).tolist()
        return MissTotals._make(
            (*sums, self.doorbell.signals, self.doorbell.late_threads, 1e9 * self.doorbell.busy_seconds)
        )
