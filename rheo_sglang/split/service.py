"""CpuService: attends what an attention kernel hands over, whenever that kernel rings."""

from __future__ import annotations

import torch

from rheo_kernels.cpu import Doorbell
from rheo_kernels.cpu.doorbell import WORDS
from rheo_kernels.cuda.share import CpuShare
from rheo_sglang.split.cpu_attention import CpuAttention


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
    share
        What the kernel is given.
    """

    def __init__(self, attention: CpuAttention, layers: int, step: torch.Tensor, costs: torch.Tensor) -> None:
        self.attention = attention
        self.bell = Doorbell(torch.zeros(WORDS, dtype=torch.int32, pin_memory=True), layers)
        self.share = CpuShare(
            attention.q,
            attention.pages,
            attention.valid,
            attention.counts,
            attention.batch,
            attention.out,
            attention.lse,
            self.bell.words,
            costs,
            torch.zeros((), dtype=torch.int32, device=step.device),
            step,
            layers,
        )
        self._scales: dict[int, float] = {}

    def prepare(self, layer: int, scale: float) -> CpuShare:
        """Make sure that rings of a layer are answered.

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
        return self.share
