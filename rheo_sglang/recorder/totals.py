"""RecorderTotals: what all requests since the start counted together, without waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rheo_sglang.recorder.ended import Counts

SUMS = ("hits", "selected", "mass", "mass_samples", "coverage", "coverage_samples", "grown", "grown_pages")
"""Columns of `RecorderTotals.sums` after the hit rates of the layers."""


@dataclass(frozen=True)
class RecorderTotals:
    """Sums over requests and their steps.

    Attributes
    ----------
    sums
        ``[L + 8]``, float64, on the device: hit rates of each layer, summed over KV heads, then `SUMS`.
    iterations
        Decode steps, each of one request.
    listed
        Pages of the context, of each of these.
    """

    sums: torch.Tensor
    iterations: int
    listed: int

    def __add__(self, other: RecorderTotals) -> RecorderTotals:
        """Of both."""
        return RecorderTotals(
            self.sums + other.sums, self.iterations + other.iterations, self.listed + other.listed
        )


def sum_rows(counts: Counts, rows: torch.Tensor, iterations: torch.Tensor) -> torch.Tensor:
    """Sum the counters of some rows over everything but layers.

    Parameters
    ----------
    counts
        Counters of all rows.
    rows
        Rows to sum, ``[X]``, int64.
    iterations
        Decode steps of each, ``[X]``, int64. Estimated coverage is summed over the requests in which it is finite, as
        are the samples that it is of.

    Returns
    -------
    torch.Tensor
        As `RecorderTotals.sums`.
    """
    rates = counts.rates[rows]
    zero = torch.zeros((), dtype=torch.float64, device=rates.device)

    def total(counter: torch.Tensor | None) -> torch.Tensor:
        return zero if counter is None else counter[rows].sum(dtype=torch.float64)

    coverage = coverage_samples = zero
    if counts.coverage is not None:
        of_each = counts.coverage[rows].sum((1, 2), dtype=torch.float64)
        finite = of_each.isfinite()
        coverage = of_each.where(finite, 0).sum()
        coverage_samples = (iterations * finite).sum() * counts.coverage[0].numel()
    sums = [
        total(counts.hits),
        total(counts.selected),
        total(counts.mass),
        total(counts.mass_samples),
        coverage,
        coverage_samples.to(torch.float64),
        total(counts.grown),
        total(counts.grown_pages),
    ]
    return torch.cat([rates.sum((0, 2), dtype=torch.float64), torch.stack(sums)])


@dataclass(frozen=True)
class HitTotals:
    """`RecorderTotals` on the host.

    Attributes
    ----------
    rates
        Hit rates of each layer, summed over KV heads and steps, ``[L]``.
    kv_heads
        ``H``.
    iterations, listed
        See `RecorderTotals`.
    hits, selected
        Pages with a frame, and all that were selected.
    mass, coverage
        Attention on them, as measured and as estimated, summed over ``mass_samples`` and ``coverage_samples``.
    grown, grown_pages
        Samples that were allowed more than the budget, and by how many pages.
    """

    rates: np.ndarray
    kv_heads: int
    iterations: int
    listed: int
    hits: float
    selected: float
    mass: float
    mass_samples: float
    coverage: float
    coverage_samples: float
    grown: float
    grown_pages: float

    @classmethod
    def of(cls, sums: np.ndarray, kv_heads: int, iterations: int, listed: int) -> HitTotals:
        """From `RecorderTotals.sums`, which has arrived."""
        layers = len(sums) - len(SUMS)
        return cls(
            sums[:layers],
            kv_heads,
            iterations,
            listed,
            **dict(zip(SUMS, sums[layers:].tolist(), strict=True)),
        )

    @property
    def samples(self) -> int:
        """Of a layer, a KV head and a step each."""
        return self.iterations * len(self.rates) * self.kv_heads

    @property
    def context(self) -> int:
        """Pages of the context, over all samples."""
        return self.listed * len(self.rates) * self.kv_heads

    def __sub__(self, earlier: HitTotals) -> HitTotals:
        """What was counted since."""
        numbers = {
            name: getattr(self, name) - getattr(earlier, name)
            for name in ("rates", "iterations", "listed", *SUMS)
        }
        return HitTotals(kv_heads=self.kv_heads, **numbers)
