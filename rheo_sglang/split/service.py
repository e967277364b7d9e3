"""CpuService: attends what an attention kernel hands over, whenever that kernel rings."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.cpu import Doorbell
from rheo_kernels.cpu.doorbell import WORDS
from rheo_kernels.cuda.share import CLOCK, CLOCK_SUMS, CpuShare
from rheo_sglang.split.cpu_attention import CpuAttention

ALL = 65536
"""In `CpuShare.rules`: every page may be loaded."""


class MissTotals(NamedTuple):
    """Sums over layers of decode steps that had misses; times in nanoseconds."""

    layers: float
    """How many there were."""
    expected: float
    """What the cost model expected their attention to take."""
    rung: float
    """What it took until the CPU was rung, or was found not to be needed."""
    attended: float
    """What the GPU's part took."""
    answered: float
    """What the CPU's part took as well."""
    took: float
    """What all of it took, the merge included."""
    rings: float
    """Layers that the CPU took a part of."""
    late: float
    """CPU threads that came too late for the first pages that were theirs, so that another took them."""
    cpu: float
    """What its part took, from ring to answer."""


def miss_report(services: list[CpuService]) -> dict[str, float]:
    """Mean microseconds per layer with misses: what was expected, and what happened; see `MissTotals`.

    Parameters
    ----------
    services
        Those of every batch size.
    """
    each = [service.totals() for service in services]
    totals = MissTotals(**{name: sum(getattr(one, name) for one in each) for name in MissTotals._fields})
    layers, rings = max(totals.layers, 1), max(totals.rings, 1)
    waited = totals.answered - totals.attended
    return {
        "layers_with_misses": int(totals.layers),
        "layers_with_a_cpu_part": int(totals.rings),
        "expected_us": round(totals.expected / layers / 1e3, 2),
        "handed_over_us": round(totals.rung / layers / 1e3, 2),
        "took_us": round(totals.took / layers / 1e3, 2),
        "gpu_part_us": round(totals.attended / layers / 1e3, 2),
        "cpu_part_us": round(totals.cpu / rings / 1e3, 2),
        "late_cpu_threads": round(totals.late / rings, 2),
        "gpu_waited_for_cpu_us": round(waited / layers / 1e3, 2),
        "both_worked_us": round((totals.cpu - waited) / layers / 1e3, 2),
    }


class CpuService:
    """The CPU's side of attention that both do; no driver and no Python between a ring and its answer.

    Parameters
    ----------
    attention
        Buffers and tasks.
    layers
        Layers of a step.
    step
        Number of the decode step, scalar, int32, on the device.
    costs
        What decides how misses are divided, see `CpuShare.costs`.

    Attributes
    ----------
    clocks, paces, rules
        See `CpuShare`.
    """

    def __init__(self, attention: CpuAttention, layers: int, step: torch.Tensor, costs: torch.Tensor) -> None:
        self.attention = attention
        self.bell = Doorbell(torch.zeros(WORDS, dtype=torch.int32, pin_memory=step.is_cuda), layers)
        self.clocks = torch.zeros((layers, len(CLOCK)), dtype=torch.int64, device=step.device)
        self.paces = torch.ones((layers, 2), device=step.device)
        self.rules = torch.tensor([[0, ALL, ALL]] * layers, dtype=torch.int32, device=step.device)
        results = attention.out, attention.lse
        state = self.bell.words, costs, self.clocks, self.paces, self.rules, step, layers
        self._shares = [CpuShare(*handed, *results, *state) for handed in attention.handed]
        self._scales: dict[int, float] = {}

    def prepare(self, layer: int, scale: float) -> CpuShare:
        """Make sure that rings of a layer are answered, and say what its kernels exchange with the CPU.

        Parameters
        ----------
        layer
            Layer index.
        scale
            Softmax scale.
        """
        if self._scales.get(layer) != scale:
            self.bell.assign(layer, self.attention.task(layer, scale))
            self._scales[layer] = scale
        return self._shares[layer]

    def totals(self) -> MissTotals:
        """What misses took so far, the latest layer apart. Waits for the device."""
        sums = self.clocks[:, -len(CLOCK_SUMS) :].sum(0).tolist()
        return MissTotals._make((*sums, self.bell.rings, self.bell.late, 1e9 * self.bell.busy_seconds))
