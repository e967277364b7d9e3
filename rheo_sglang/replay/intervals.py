"""intervals: 95 % confidence intervals of hit rates over requests, layers and KV heads, by resampling both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rheo_sglang.replay.sweep import Outcome

SAMPLES = 1000
BOUNDS = (2.5, 97.5)
Samples = npt.NDArray[np.float64]


def resampled(outcomes: Sequence[Outcome], seed: int = 0) -> Samples:
    """Hit rates of outcomes over the same resamples of requests and rows, which keeps them paired.

    Requests and rows (layers and KV heads) are drawn with replacement, each on their own (Owen, 2007, Annals of Applied
    Statistics 1); of a
    single request, only rows.

    Parameters
    ----------
    outcomes
        Of one trace: all have the same requests and rows.
    seed
        Of the draws.

    Returns
    -------
    float array ``[len(outcomes), SAMPLES]``
        Resident of all selected pages.
    """
    requests, rows = outcomes[0].hits.shape
    draw = np.random.default_rng(seed)
    by_request = draw.multinomial(requests, np.full(requests, 1 / requests), SAMPLES)
    by_row = draw.multinomial(rows, np.full(rows, 1 / rows), SAMPLES)

    def weighted(counts: npt.NDArray[np.int64]) -> Samples:
        return ((by_request @ counts) * by_row).sum(1).astype(np.float64)

    return np.stack([weighted(one.hits) / np.maximum(weighted(one.selected), 1) for one in outcomes])


def interval(samples: Samples) -> list[float]:
    """Bounds of the middle 95 % of samples that are numbers, rounded."""
    finite = samples[np.isfinite(samples)]
    return [round(float(bound), 4) for bound in np.percentile(finite, BOUNDS)] if len(finite) else []
