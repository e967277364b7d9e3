"""curriculum: which row lengths are trained after which, until when, and how the learning rate moves."""

from __future__ import annotations

from dataclasses import dataclass

from training.rows import Mixture

STRETCHED = 81_920
"""Positions are stretched up to here: 64K and some room for answers."""


@dataclass(frozen=True)
class Stage:
    """Training at one longest row length.

    Attributes
    ----------
    lengths
        Row lengths with the weights they are drawn with, step by step.
    density
        Range of the share of facts and turns at the longest length; see `rows.RowShape`.
    largest_position
        See `rows.RowShape`.
    most_steps
        Optimiser steps after which the stage ends at the latest.
    least_steps
        Steps from which it may end because every task is learnt; None runs all `most_steps`.
    most_seconds
        Seconds after which it ends even so; None for no such bound.
    decays
        Whether the learning rate falls over `most_steps`, linearly to 2 %.
    """

    lengths: dict[int, float]
    density: tuple[float, float]
    largest_position: int
    most_steps: int
    least_steps: int | None = None
    most_seconds: float | None = None
    decays: bool = False


@dataclass(frozen=True)
class Curriculum:
    """A training from its first step to its last.

    Attributes
    ----------
    stages
        In order.
    mixture
        Shares of texts and tasks.
    weight_decay
        Decoupled decay of the matrices, a share of the learning rate.
    round_steps
        Steps between two decisions about stage and shares of tasks; see `pacing`.
    """

    stages: tuple[Stage, ...]
    mixture: Mixture
    weight_decay: float
    round_steps: int = 64


_WIDTHS = {"needle": 1, "multikey": 32, "multivalue": 6, "vartrack": 6, "dictionary": 32, "repeated": 12}
_HOPS = (0, 0, 1, 2, 3, 4, 5)

FULL = Curriculum(
    stages=(
        Stage({256: 1}, (0.4, 0.9), 0, most_steps=10240, least_steps=512, most_seconds=480),
        Stage({256: 1, 1024: 3}, (0.1, 0.8), 0, most_steps=2048, least_steps=256, most_seconds=120),
        Stage({1024: 1, 4096: 3}, (0.03, 0.5), STRETCHED, most_steps=2048, least_steps=256, most_seconds=120),
        Stage(
            {1024: 1, 4096: 2, 16384: 5},
            (0.005, 0.3),
            STRETCHED,
            most_steps=1536,
            least_steps=256,
            most_seconds=100,
        ),
        Stage(
            {4096: 2, 16384: 2, 32768: 4},
            (0.003, 0.25),
            STRETCHED,
            most_steps=1024,
            least_steps=256,
            most_seconds=80,
        ),
        Stage(
            {256: 1, 1024: 1, 4096: 2, 16384: 3, 32768: 4},
            (0.003, 0.25),
            STRETCHED,
            most_steps=1536,
            decays=True,
        ),
    ),
    mixture=Mixture(
        sources={"novels": 2, "library": 17, "documentation": 1},
        tasks={"needle": 2, "multikey": 4, "multivalue": 6, "vartrack": 6, "dictionary": 3, "repeated": 2},
        widths=_WIDTHS,
        hops=_HOPS,
    ),
    weight_decay=0.02,
)
"""From scratch: rows grow only when every task is learnt at the length before."""

SMOKE = Curriculum(
    stages=(
        Stage({128: 1}, (0.5, 0.9), 0, most_steps=8, least_steps=4),
        Stage({128: 1, 256: 1}, (0.3, 0.6), 512, most_steps=4, decays=True),
    ),
    mixture=FULL.mixture,
    weight_decay=0.1,
    round_steps=2,
)
"""Seconds on a CPU: shows that the training runs, not that it teaches."""

CURRICULA = {"full": FULL, "smoke": SMOKE}


def learning_rate_scale(stage: Stage, stage_step: int, steps_since_start: int, warm_up: int = 50) -> float:
    """Share of the peak learning rate at a step.

    Parameters
    ----------
    stage
        The step's stage.
    stage_step
        Steps of that stage before this one.
    steps_since_start
        Steps since the optimiser's state began, which is when the warm-up begins.
    warm_up
        Steps of the warm-up.
    """
    left = 1 - stage_step / stage.most_steps if stage.decays else 1.0
    return min((steps_since_start + 1) / warm_up, 0.02 + 0.98 * left)
