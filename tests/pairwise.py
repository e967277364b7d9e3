"""combinations: all combinations of values, of which only enough for every pair of values run without `--full`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest


def combinations(*axes: Sequence[Any]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`.

    A fault that depends on three or more values at once is seldom; each pair of values of two axes is in some
    combination that is not marked `full` (pairwise testing, Cohen et al. 1997). The choice is
    greedy and always the same.

    Parameters
    ----------
    *axes : sequence
        Values of each parameter.
    """
    cases = list(itertools.product(*(range(len(axis)) for axis in axes)))
    missing = {pair for case in cases for pair in _pairs(case)}
    chosen = set()
    while missing:
        best = max(cases, key=lambda case: len(missing.intersection(_pairs(case))))
        chosen.add(best)
        missing.difference_update(_pairs(best))
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, case, strict=True)),
            marks=() if case in chosen else pytest.mark.full,
        )
        for case in cases
    ]


def _pairs(case: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    return itertools.combinations(tuple(enumerate(case)), 2)
