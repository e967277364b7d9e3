"""95 % confidence intervals of scores in [0, 1], and of the difference of two servers on the same prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

NORMAL_95 = 1.96


def score_half_width(scores: Sequence[float]) -> float:
    """Half of Wilson's interval of a mean score.

    Parameters
    ----------
    scores
        In [0, 1]. It is made for scores of 0 and 1; others vary less, so for them it is on the safe side.

    Returns
    -------
    float
        Above 0 even where all scores are equal. Wilson, 1927, J. American Statistical Association 22.
    """
    count, mean, square = len(scores), fmean(scores), NORMAL_95**2
    inner = mean * (1 - mean) / count + square / (4 * count**2)
    return NORMAL_95 / (1 + square / count) * math.sqrt(max(inner, 0.0))


def paired_difference(one: Sequence[float], two: Sequence[float]) -> tuple[float, float]:
    """How far the scores ``one`` are above the scores ``two`` of the same prompts.

    Parameters
    ----------
    one, two
        In [0, 1], prompt by prompt.

    Returns
    -------
    difference : float
        Of the means.
    half_width : float
        Half of the 95 % interval: what a pair's difference varies by, not what a prompt's difficulty does. As in
        McNemar's test only pairs that differ count; one more pair of each sign keeps it above 0. Bonett and Price,
        2012, J. Educational and Behavioral Statistics 37, for 0 and 1; here with squares of any differences.
    """
    differences = [first - second for first, second in zip(one, two, strict=True)]
    count = len(differences) + 2
    mean = sum(differences) / count
    variance = (sum(value**2 for value in differences) + 2) / count - mean**2
    return fmean(differences), NORMAL_95 * math.sqrt(variance / count)
