"""offload: buffers and counters through which the attention kernel offloads a part of a layer's misses to the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Costs(NamedTuple):
    """The cost model by which the kernel partitions misses, such that fetching and the CPU end together."""

    fetch_latency: float
    """Microseconds before the first page is fetched."""
    fetch_page: float
    """Microseconds to fetch a page."""
    cpu_latency: float
    """Microseconds before the CPU attends its first page: signal and completion."""
    cpu_page: float
    """Microseconds to attend a page there."""
    slowdown: float
    """Factor by which pages take longer while fetching and the CPU are both busy, at least 1."""
    hit_page: float
    """Microseconds to attend a page in a frame. Misses that take no longer than all hits cost nothing."""


TIMESTAMP_SUMS = ("steps", "sum_expected", "sum_signalled", "sum_gpu_done", "sum_cpu_seen", "sum_merged")
TIMESTAMPS_OF_STEP = (
    "began",
    "expected",
    "expected_fetch",
    "expected_cpu",
    "signalled",
    "gpu_done",
    "cpu_done",
    "cpu_seen",
    "merged",
    "acknowledged",
)
TIMESTAMPS = (*TIMESTAMPS_OF_STEP, *TIMESTAMP_SUMS)
"""Columns of `CpuOffload.timings`, in nanoseconds but for ``acknowledged``, the sequence number of the CPU's latest
completion, and ``steps``, a count; `miss_partition.cuh` describes each. Sums are over steps with misses; the latest
layer is not in them yet, and a model of a single layer has none."""


class CpuOffload(NamedTuple):
    """What the attention kernel and the CPU exchange for one layer, and what decides how misses are partitioned.

    ``X`` requests at most. The first six are in memory that both sides see, the first three aligned to 128 bytes and
    with room up to the next 128; rows beyond the launch's are not touched.
    """

    q: torch.Tensor
    """Queries, ``[X, Hq, D]``, two bytes an element."""
    entries: torch.Tensor
    """Words for pages, tagged with the sequence number, ``[X, H, Y]``, int64, ``Y`` a multiple of a line; see
    `rheo_kernels.types.offload_words`."""
    counts: torch.Tensor
    """Words for the number of each list's pages, ``[X, H]``, int64."""
    out: torch.Tensor
    """The CPU's attention output, ``[X, Hq, D]``, float32."""
    lse: torch.Tensor
    """Its LSE, natural logarithm, ``[X, Hq]``, float32."""
    doorbell: torch.Tensor
    """Words of a `rheo_kernels.cpu.Doorbell`."""
    costs: torch.Tensor
    """`Costs`, ``[6]``, float32, on the device."""
    timings: torch.Tensor
    """Of every layer, ``[L, len(TIMESTAMPS)]``, int64, on the device."""
    cost_scales: torch.Tensor
    """Measured over predicted time of fetching and of the CPU in each layer, a running average, ``[L, 2]``, float32, on
    the device, 1 to begin with. The next layer's kernel updates it, so that of a single layer stays."""
    load_quota: torch.Tensor
    """How many of each layer's candidates may be admitted, ``[L, 3]``, int32, on the device: see `gather_misses`."""
    step: torch.Tensor
    """Number of the decode step, from 1 on, scalar, int32, on the device."""
    layers: int
    """Layers of a step. The sequence number of a layer is ``step * layers + layer + 1``."""
