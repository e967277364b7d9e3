"""share: what kernels and CPU exchange when both attend a layer's misses, and what decides who attends how many."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Costs(NamedTuple):
    """What misses take, by which the kernel divides them such that fetching and the CPU end together."""

    fetch_begin: float
    """Microseconds to begin to fetch."""
    fetch_page: float
    """Microseconds to fetch a page."""
    cpu_begin: float
    """Microseconds to begin on the CPU: hand-over and answer."""
    cpu_page: float
    """Microseconds to attend a page there."""
    slowdown: float
    """How much longer pages take both ways while the other goes on, at least 1."""
    hit_page: float
    """Microseconds to attend a page in a frame: misses may take as long as all hits for nothing."""


CLOCK_SUMS = ("steps", "sum_expected", "sum_rung", "sum_attended", "sum_answered", "sum_ended")
CLOCK_STEP = (
    "began",
    "expected",
    "expected_fetch",
    "expected_cpu",
    "rung",
    "attended",
    "replied",
    "answered",
    "ended",
    "heard",
)
CLOCK = (*CLOCK_STEP, *CLOCK_SUMS)
"""Columns of `CpuShare.clocks`, in nanoseconds: the latest step's, the number of the latest ring that was answered, and
sums over steps with misses, up to the layer before the latest. A single layer has no sums."""


class CpuShare(NamedTuple):
    """Where a layer's misses are handed over to the CPU, and what it made of them is found.

    The first six are in memory that both sides see, the first three aligned to 128 bytes and with room up to the next
    128; rows beyond the launch's are not touched.
    """

    q: torch.Tensor
    """``[X, Hq, D]``, dtype of the queries."""
    entries: torch.Tensor
    """Words for pages, tagged with the ring's number, ``[X, H, Y]``, int64, ``Y`` a multiple of a line; see
    `rheo_kernels.reference.handed`."""
    counts: torch.Tensor
    """Words for the number of each list's pages, ``[X, H]``, int64."""
    out: torch.Tensor
    """``[X, Hq, D]``, float32."""
    lse: torch.Tensor
    """Natural logarithm, ``[X, Hq]``, float32."""
    bell: torch.Tensor
    """Words of a `rheo_kernels.cpu.Doorbell`."""
    costs: torch.Tensor
    """What decides how misses are divided, `Costs`, ``[6]``, float32, on the device."""
    clocks: torch.Tensor
    """What each layer's misses were expected to take and took, ``[L, len(CLOCK)]``, int64, on the device."""
    paces: torch.Tensor
    """How many times as long as by the costs fetching and the CPU took in each layer of late, ``[L, 2]``, float32, on
    the device, 1 to begin with. The next layer's kernel learns it from the layer's clock; a single layer's stays."""
    rules: torch.Tensor
    """Which of each layer's candidates may be admitted, ``[L, 3]``, int32, on the device: see `gather_misses`."""
    step: torch.Tensor
    """Number of the decode step, from 1 on, scalar, int32, on the device."""
    layers: int
    """Layers of a step: a ring's number is ``step * layers + layer + 1``."""
