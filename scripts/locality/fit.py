"""fit: parameters of the process that come back to pages as often as a real model's selections do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from tqdm import tqdm

from locality.process import Locality, components, head_normals, synthetic_scores
from locality.replay import SPREAD_LAG
from locality.statistics import LAGS, Booleans, reselection, reselection_by_cache, retrieved_mask

PERIODS = (1, 4, 32)
LAYERS, HEADS = 36, 8
START = (0.9, 0.2, 0.2, 0.3, 0.5)
FIT_SEED = 0


def targets(retrieved: Booleans | torch.Tensor) -> npt.NDArray[np.float64]:
    """What the fit matches: re-selection at every lag, and its standard deviation over caches at `SPREAD_LAG`."""
    curve = [reselection(retrieved, lag) for lag in LAGS]
    return np.array([*curve, reselection_by_cache(retrieved, SPREAD_LAG).std()])


def fit(
    goal: npt.NDArray[np.float64],
    num_pages: torch.Tensor,
    budget: float,
    sink_pages: int,
    window_pages: int,
    layers: int = LAYERS,
) -> Locality:
    """Least squares on `targets` by the simplex method, over the process at so many layers of `HEADS` heads.

    Parameters
    ----------
    goal
        `targets` of what a real model's steps retrieved at this budget.
    num_pages
        Pages at each step, ``[steps]``, int32; the process is given the same. The fit runs on its device.
    budget, sink_pages, window_pages
        As in `retrieved_pages`.
    layers
        Fewer do where there are many pages.
    """
    steps, columns = num_pages.shape[0], int(num_pages.max())
    device = num_pages.device
    seeds = torch.tensor([FIT_SEED], device=device)
    parts = torch.stack(
        [
            torch.cat(
                [components(columns, step, layer, HEADS, seeds, PERIODS)[:, 0] for layer in range(layers)], 1
            )
            for step in range(steps)
        ],
        1,
    )
    restless = torch.cat([head_normals(layer, HEADS, seeds.device) for layer in range(layers)])
    absent = (torch.arange(columns, device=device) >= num_pages[:, None])[:, None]

    def loss(values: npt.NDArray[np.float64]) -> float:
        static, *weights, spread = values
        moving = torch.einsum(
            "k,ktcm->tcm", torch.tensor(weights, dtype=torch.float32, device=device), parts[1:]
        )
        scores = static * parts[0] + (spread * restless).exp()[:, None] * moving
        scores.masked_fill_(absent, -torch.inf)
        error = targets(retrieved_mask(scores, num_pages, budget, sink_pages, window_pages)) - goal
        return float((error**2).sum())

    with tqdm(desc="fit", unit="simplex", leave=False, disable=None) as progress:
        best = minimize(
            loss,
            START,
            method="Nelder-Mead",
            callback=lambda _: progress.update() and None,
            options={"maxiter": 150, "xatol": 2e-3, "fatol": 1e-7},
        )
    static, *weights, spread = map(float, np.abs(best.x))
    norm = float(np.linalg.norm([static, *weights]))
    return Locality(
        round(static / norm, 4), tuple(round(w / norm, 4) for w in weights), PERIODS, round(spread, 4)
    )


def process_scores(
    num_pages: torch.Tensor, seeds: torch.Tensor, layers: int, heads: int, locality: Locality
) -> torch.Tensor:
    """Scores of the process at steps 0, 1, ..., ``[steps, B * L * H, M]``, float32; ``-inf`` past the last page."""
    columns = int(num_pages.max())
    steps = [
        torch.cat(
            [synthetic_scores(columns, step, layer, heads, seeds, locality) for layer in range(layers)], 1
        ).flatten(0, 1)
        for step in range(num_pages.shape[0])
    ]
    absent = (torch.arange(columns) >= num_pages[:, None])[:, None]
    return torch.stack(steps).masked_fill_(absent, -torch.inf)
