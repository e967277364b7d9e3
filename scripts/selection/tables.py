"""What many prompts, layers and heads measured, as a few figures: medians, the worst head, ratios to the default."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

DIGITS = 4
WORST_IS_LEAST = {"mass": True, "error_tail": False, "error": False, "bias_98": False}
"""Measures of which the worst head is told, and whether the least is the worst."""


class Cell(NamedTuple):
    """One selection that was judged."""

    page_size: int
    kind: str
    budget: float


Found = dict[Cell, list[dict[str, torch.Tensor]]]
"""For every cell and prompt, every measure by layer and query head, ``[layers, H * G]``."""


def metrics_of(
    found: list[dict[str, torch.Tensor]], default: list[dict[str, torch.Tensor]]
) -> dict[str, Any]:
    """Figures of one selection.

    Parameters
    ----------
    found
        Of every prompt.
    default
        The same of what it is compared to.

    Returns
    -------
    dict
        Medians over prompts, layers and heads; ``worst``, the worst head's median over prompts, its layer and head;
        ``error_ratio``, the median over layers and heads of its error over the default's, each with a tail if it has
        one: the median prompt's, the least and the greatest. Measures that are undefined are left out.
    """
    figures: dict[str, Any] = {}
    worst: dict[str, Any] = {}
    for name in found[0]:
        whole = torch.stack([one[name] for one in found])
        if whole.isnan().any():
            continue
        figures[name] = _rounded(whole.quantile(0.5))
        if name in WORST_IS_LEAST:
            heads = whole.quantile(0.5, 0)
            at = int((heads if WORST_IS_LEAST[name] else -heads).argmin())
            worst[name] = [_rounded(heads.flatten()[at]), *divmod(at, heads.shape[1])]
    ratios = sorted(
        float((_output(one) / _output(other)).quantile(0.5))
        for one, other in zip(found, default, strict=True)
    )
    middle = math.sqrt(ratios[(len(ratios) - 1) // 2] * ratios[len(ratios) // 2])
    return {
        **figures,
        "worst": worst,
        "error_ratio": [round(one, DIGITS) for one in (middle, ratios[0], ratios[-1])],
    }


def by_layer(found: list[dict[str, torch.Tensor]]) -> dict[str, list[float]]:
    """Medians over prompts and heads of every layer: what is covered, the error of what would be served, and bias."""
    measures = {"mass": [one["mass"] for one in found], "error": [_output(one) for one in found]}
    if not found[0]["bias_98"].isnan().any():
        measures["bias_98"] = [one["bias_98"] for one in found]
    return {
        name: [_rounded(layer.quantile(0.5)) for layer in torch.stack(ones, 1)]
        for name, ones in measures.items()
    }


def by_head(found: list[dict[str, torch.Tensor]], name: str) -> list[list[float]]:
    """Medians over prompts of one measure, for every layer and query head."""
    heads = torch.stack([one[name] for one in found]).quantile(0.5, 0)
    return [[_rounded(one) for one in layer] for layer in heads]


def _output(found: dict[str, torch.Tensor]) -> torch.Tensor:
    """Error of what would be served: with a tail if there is one."""
    tail = found["error_tail"]
    return found["error"] if tail.isnan().any() else tail


def _rounded(value: torch.Tensor) -> float:
    return round(float(value), DIGITS)
