"""batches: rows of one length, made in other processes while the model trains on earlier ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset

from training.curriculum import Curriculum
from training.pacing import Pacing, Plan
from training.rows import RowMaker, RowShape


@dataclass(frozen=True)
class Order:
    """Which batch to make.

    Attributes
    ----------
    step
        Step of the training, from 0.
    plan
        Plan of its round.
    """

    step: int
    plan: Plan


@dataclass(frozen=True)
class Batch:
    """Rows of one length; all batches of a training have the same number of tokens.

    Attributes
    ----------
    order
        What was asked for.
    tokens
        int32 ``[rows, length + 1]``.
    roles
        uint8 ``[rows, length + 1]``.
    positions
        int32 ``[rows, length + 1]``.
    """

    order: Order
    tokens: np.ndarray
    roles: np.ndarray
    positions: np.ndarray


class Batches(Dataset[Batch]):
    """Batches of a curriculum, each a function of the seed and its order alone.

    Parameters
    ----------
    rows
        Makes the rows.
    curriculum
        What the orders' stages are.
    tokens
        Tokens of a batch; a multiple of every row length.
    seed
        Seed of the training.

    Raises
    ------
    ValueError
        When rows of some length do not fill a batch.
    """

    def __init__(self, rows: RowMaker, curriculum: Curriculum, tokens: int, seed: int) -> None:
        for length in {length for stage in curriculum.stages for length in stage.lengths}:
            if tokens % length:
                raise ValueError(
                    f"tokens per batch must be a multiple of every row length: {tokens} % {length} != 0"
                )
        self.curriculum = curriculum
        self._rows = rows
        self._tokens = tokens
        self._seed = seed

    def __getitem__(self, order: Order) -> Batch:
        stage = self.curriculum.stages[order.plan.stage]
        rng = random.Random(f"training {self._seed} {order.step}")
        (length,) = rng.choices(list(stage.lengths), list(stage.lengths.values()))
        low, high = stage.density
        densest = max(stage.lengths) / length
        shape = RowShape(length, (min(0.4, low * densest), min(0.9, high * densest)), stage.largest_position)
        rows = [self._rows.make(shape, order.plan.shares, rng) for _ in range(self._tokens // length)]
        return Batch(
            order,
            np.stack([row.tokens for row in rows]).astype(np.int32),
            np.stack([row.roles for row in rows]),
            np.stack([row.positions for row in rows]),
        )


class _Orders:
    """Orders of the steps to go, each given out once its round is planned."""

    def __init__(self, pacing: Pacing, round_steps: int) -> None:
        self._pacing = pacing
        self._round_steps = round_steps

    def __iter__(self) -> Iterator[Order]:
        number = self._pacing.rounds
        while plan := self._pacing.plan(number):
            for step in range(number * self._round_steps, (number + 1) * self._round_steps):
                yield Order(step, plan)
            number += 1


def load_batches(batches: Batches, pacing: Pacing, workers: int) -> DataLoader[Batch]:
    """Batches from the next planned round to the end of the training.

    Parameters
    ----------
    batches
        Makes them.
    pacing
        Plans rounds while the batches are consumed: `Pacing.absorb` must follow each round's last batch before the
        next batch is asked for.
    workers
        Processes that make batches, at most a round's steps: more would wait for a plan. 0 makes them in this one.
    """
    round_steps = batches.curriculum.round_steps
    workers = min(workers, round_steps)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=_Orders(pacing, round_steps),
        num_workers=workers,
        prefetch_factor=min(4, round_steps // workers) if workers else None,
        collate_fn=lambda batch: batch,
    )
