"""The curriculum: which row lengths are trained when, and how the learning rate moves."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from reference_model.rows import Mixture, RowMaker, RowShape

STRETCHED = 81_920
"""Positions are stretched up to here: 64K and some room for answers."""


@dataclass(frozen=True)
class Stage:
    """Steps of one longest row length.

    Attributes
    ----------
    steps
        Optimiser steps.
    lengths
        Row lengths with the weights they are drawn with, step by step.
    density
        Range of the share of facts and turns at the longest length; see `RowShape`.
    largest_position
        See `RowShape`.
    """

    steps: int
    lengths: dict[int, float]
    density: tuple[float, float]
    largest_position: int


@dataclass(frozen=True)
class Curriculum:
    """One phase of training, with its own warm-up and decay of the learning rate.

    Attributes
    ----------
    stages
        In order.
    mixture
        Shares of texts and tasks.
    weight_decay
        Decoupled decay of the matrices, a share of the learning rate.
    """

    stages: tuple[Stage, ...]
    mixture: Mixture
    weight_decay: float


_WIDTHS = {"needle": 1, "multikey": 32, "multivalue": 6, "vartrack": 4, "dictionary": 32, "repeated": 12}

FULL = Curriculum(
    stages=(
        Stage(1100, {256: 1}, (0.4, 0.9), 0),
        Stage(2200, {256: 1, 1024: 4}, (0.1, 0.7), 0),
        Stage(2200, {1024: 1, 4096: 4}, (0.03, 0.5), STRETCHED),
        Stage(1500, {1024: 1, 4096: 2, 16384: 6}, (0.005, 0.3), STRETCHED),
        Stage(1700, {4096: 2, 16384: 2, 32768: 6}, (0.003, 0.25), STRETCHED),
    ),
    mixture=Mixture(
        sources={"novels": 6, "library": 13, "documentation": 1},
        tasks={"needle": 2, "multikey": 4, "multivalue": 6, "vartrack": 5, "dictionary": 3, "repeated": 2},
        widths=_WIDTHS,
        hops=(1, 2, 3, 4, 5),
    ),
    weight_decay=0.0,
)
"""From scratch."""

CONSOLIDATION = Curriculum(
    stages=(
        Stage(750, {256: 1, 1024: 1}, (0.1, 0.8), 0),
        Stage(650, {1024: 1, 4096: 2}, (0.03, 0.5), STRETCHED),
        Stage(850, {4096: 2, 16384: 3, 32768: 5}, (0.003, 0.25), STRETCHED),
    ),
    mixture=Mixture(
        sources={"novels": 2, "library": 17, "documentation": 1},
        tasks={"needle": 2, "multikey": 4, "multivalue": 6, "vartrack": 8, "dictionary": 3, "repeated": 2},
        widths=_WIDTHS | {"vartrack": 8},
        hops=(0, 0, 0, 1, 2, 3, 4, 5),
    ),
    weight_decay=0.1,
)
"""After `FULL`: more questions for a variable by its value alone, where that phase leaves errors."""

SMOKE = Curriculum(
    stages=(Stage(4, {128: 1}, (0.5, 0.9), 0), Stage(4, {128: 1, 256: 1}, (0.3, 0.6), 512)),
    mixture=FULL.mixture,
    weight_decay=0.1,
)
"""Seconds on a CPU: shows that the training runs, not that it teaches."""

CURRICULA = {"full": FULL, "consolidation": CONSOLIDATION, "smoke": SMOKE}


def learning_rate_scale(
    step: int, steps: int, first_step: int, warm_up: int = 50, decay: float = 0.3
) -> float:
    """Share of the peak learning rate at a step: linear warm-up, constant, linear decay to 2 %.

    Parameters
    ----------
    step, steps
        This step (from 0) and all steps of the training.
    first_step
        Step at which this run began; a resumed run warms up again.
    warm_up
        Steps of the warm-up.
    decay
        Share of the steps, at the end, that the decay takes.
    """
    left = (steps - step) / (decay * steps)
    return min((step - first_step + 1) / warm_up, 1.0, 0.02 + 0.98 * left)


@dataclass(frozen=True)
class Batch:
    """Rows of one length; all batches of a training have the same number of tokens.

    Attributes
    ----------
    step
        The step it belongs to.
    tokens
        int32 ``[rows, length + 1]``.
    roles
        uint8 ``[rows, length + 1]``.
    positions
        int32 ``[rows, length + 1]``.
    """

    step: int
    tokens: np.ndarray
    roles: np.ndarray
    positions: np.ndarray


class Batches(IterableDataset):
    """Batches of a curriculum in step order, each a function of seed and step alone.

    Parameters
    ----------
    rows
        Makes the rows.
    stages
        The curriculum.
    tokens
        Tokens of a batch; a multiple of every row length.
    first_step
        Step to begin with (a resumed training).
    seed
        Seed of the training.
    """

    def __init__(
        self, rows: RowMaker, stages: tuple[Stage, ...], tokens: int, first_step: int, seed: int
    ) -> None:
        for length in {length for stage in stages for length in stage.lengths}:
            if tokens % length:
                raise ValueError(
                    f"tokens per batch must be a multiple of every row length: {tokens} % {length} != 0"
                )
        self._rows = rows
        self._stages = [stage for stage in stages for _ in range(stage.steps)]
        self._tokens = tokens
        self._first_step = first_step
        self._seed = seed

    def __len__(self) -> int:
        return max(0, len(self._stages) - self._first_step)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self._first_step + offset, len(self._stages), stride):
            yield self.batch(step)

    def batch(self, step: int) -> Batch:
        """Make the batch of one step."""
        stage = self._stages[step]
        rng = random.Random(f"training {self._seed} {step}")
        (length,) = rng.choices(list(stage.lengths), list(stage.lengths.values()))
        low, high = stage.density
        densest = max(stage.lengths) / length
        shape = RowShape(length, (min(0.4, low * densest), min(0.9, high * densest)), stage.largest_position)
        rows = [self._rows.make(shape, rng) for _ in range(self._tokens // length)]
        return Batch(
            step,
            np.stack([row.tokens for row in rows]).astype(np.int32),
            np.stack([row.roles for row in rows]),
            np.stack([row.positions for row in rows]),
        )
