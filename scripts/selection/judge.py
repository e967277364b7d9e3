"""JudgedLayer: what selections by scores cover, how wrong their outputs are, and what the estimates are off by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from selection.layer import Layer
from selection.rounding import symmetric
from selection.summaries import SUMMARIES, Summary

SINK, WINDOW = 1, 2
MOST_LOG_WEIGHT = 60.0
"""Estimates beyond this, relative to the step's largest logit, are cut, so that a bad one is not infinite."""
KINDS = ("bound", *SUMMARIES, "oracle")
MEASURES = ("mass", "error", "error_tail", "bias_median", "bias_98")


class Scores(NamedTuple):
    """What a summary says of pages."""

    rank: torch.Tensor
    """What pages are ranked by, for all heads of a group, ``[H, T, N]``."""
    lse: torch.Tensor | None
    """Estimated log-sum-exp less the step's largest logit, ``[H, T, G, N]``; None where nothing is estimated."""


def page_bytes(kind: str, dim: int, page_size: int) -> int | None:
    """Bytes of a page's summary, a mean V in 4 bits among them where the kind estimates; None for the oracle."""
    if kind == "oracle":
        return None
    if kind == "bound":
        return 4 * dim
    return SUMMARIES[kind].page_bytes(dim, page_size) + dim // 2 + 1


class JudgedLayer:
    """A layer's decode steps over pages of one size.

    Parameters
    ----------
    layer
        Queries, keys and values.
    page_size
        Tokens of a page, which divide the prompt.
    """

    def __init__(self, layer: Layer, page_size: int) -> None:
        self.layer = layer
        self.page_size = page_size
        self.keys = layer.keys.unflatten(1, (-1, page_size))
        values = layer.values.unflatten(1, (-1, page_size))
        self.pages = self.keys.shape[1]
        self.value = symmetric(values.mean(2), 4)
        weights = layer.weights.unflatten(-1, (self.pages, page_size))
        self.lse = weights.sum(-1).log()
        by_page = weights.flatten(1, 2).transpose(1, 2) @ values
        self.outputs = layer.by_head(by_page.transpose(1, 2))
        """Weighted sum of a page's V, ``[H, T, G, N, D]``."""

    def scores(self, kind: str) -> Scores:
        """Scores of all pages by a kind of `KINDS`."""
        layer = self.layer
        if kind == "bound":
            low, high = (x.bfloat16().float().transpose(1, 2) for x in (self.keys.amin(2), self.keys.amax(2)))
            bound = layer.flat.clamp(min=0) @ high + layer.flat.clamp(max=0) @ low
            return Scores(layer.by_head(bound).mean(2), None)
        lse = self.lse if kind == "oracle" else self.estimate(SUMMARIES[kind].summarise(self.keys))
        return Scores(lse.softmax(-1).mean(2), lse)

    def estimate(self, summary: Summary) -> torch.Tensor:
        """Log-sum-exp of pages as if every token had its row's key, less the step's largest logit, ``[H, T, G, N]``."""
        layer, count = self.layer, summary.rows.shape[2]
        logits = (layer.flat @ summary.rows.flatten(1, 2).transpose(1, 2)).unflatten(-1, (-1, count))
        if summary.counts is None:
            lse = logits.logsumexp(-1) + math.log(self.page_size / count)
        else:
            lse = (logits + summary.counts[:, None].log()).logsumexp(-1)
        squares = layer.flat.square()
        if summary.steps is not None:
            lse -= squares @ summary.steps.square().transpose(1, 2) / 24
        if summary.variance is not None:
            lse += squares @ summary.variance.transpose(1, 2) / 2
        return layer.by_head(lse) - layer.top

    def measure(self, scores: Scores, budget: float) -> dict[str, torch.Tensor]:
        """`MEASURES` of selecting a share of the pages, sinks and window among them.

        Parameters
        ----------
        scores
            Of all pages.
        budget
            Share of the pages to select, rounded up.

        Returns
        -------
        dict
            For every query head, ``[H * G]``: mean share of the attention that is attended exactly (``mass``); distance
            of the steps' outputs from dense attention's over their norm, without and with the rest attended by
            estimates (``error``, ``error_tail``); natural logarithm of the rest's estimated over its true mass, median
            and 98th percentile of the steps (``bias_median``, ``bias_98``). NaN where nothing is estimated.
        """
        layer, count = self.layer, self.pages
        place = torch.arange(count)
        rank = scores.rank.masked_fill((place < SINK) | (place >= count - WINDOW), torch.inf)
        wanted = min(max(math.ceil(budget * count), SINK + WINDOW), count)
        best = rank.topk(wanted, -1).indices[:, :, None]
        taken = torch.take_along_dim(self.outputs, best[..., None], 3).sum(3) + layer.recent
        mass = torch.take_along_dim(self.lse, best, 3).exp().sum(-1) + layer.recent_mass
        found = {
            "mass": (mass / layer.mass).mean(1),
            "error": self._error(taken / mass[..., None]),
        }
        if scores.lse is None:
            nothing = torch.full_like(found["mass"], torch.nan)
            found |= {"error_tail": nothing, "bias_median": nothing, "bias_98": nothing}
        else:
            chosen = torch.zeros(rank.shape, dtype=torch.bool).scatter_(-1, best[:, :, 0], True)[:, :, None]
            left = scores.lse.masked_fill(chosen, -torch.inf)
            true = self.lse.masked_fill(chosen, -torch.inf).clamp(min=-MOST_LOG_WEIGHT)
            bias = left.clamp(min=-MOST_LOG_WEIGHT).logsumexp(-1) - true.logsumexp(-1)
            weights = left.clamp(max=MOST_LOG_WEIGHT).exp()
            tail = layer.by_head(weights.flatten(1, 2) @ self.value)
            out = (taken + tail) / (mass + weights.sum(-1))[..., None]
            found["error_tail"] = self._error(out)
            found["bias_median"], found["bias_98"] = bias.quantile(torch.tensor([0.5, 0.98]), 1)
        return {name: one.flatten() for name, one in found.items()}

    def _error(self, out: torch.Tensor) -> torch.Tensor:
        """Relative L2 distance to dense attention over a head's steps, ``[H, G]``."""
        dense = self.layer.dense
        return ((out - dense).square().sum((1, 3)) / dense.square().sum((1, 3))).sqrt()


def judge(
    layer: Layer, page_size: int, kinds: list[str], budgets: list[float]
) -> Iterator[tuple[str, float, dict[str, torch.Tensor]]]:
    """Every kind and budget, and what `JudgedLayer.measure` says of them."""
    judged = JudgedLayer(layer, page_size)
    for kind in kinds:
        scores = judged.scores(kind)
        for budget in budgets:
            yield kind, budget, judged.measure(scores, budget)
