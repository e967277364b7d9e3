"""Corrections of pages' estimates by what a prompt's last tokens attended, and ways to apply them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from budgets.rules import best, forced
from budgets.steps import LayerSteps

LEAST_SHARE = 1e-9
STEP = 1 / 16
"""Nats of a code that holds a correction."""


class Learned(NamedTuple):
    """What a prompt's last tokens tell of one layer, logarithms, ``[H, N]``, means over tokens and the group."""

    true: torch.Tensor
    """Shares of the attention."""
    estimated: torch.Tensor
    """Shares of the attention as it is estimated."""
    mass: torch.Tensor
    """Estimated over true attention: no share, for all pages may be estimated too low."""


class Way(NamedTuple):
    """How corrections enter one use of estimates.

    Attributes
    ----------
    by
        ``plain``: not at all; ``shares``: true over estimated share, as the server has it; ``masses``: true over
        estimated attention; ``centred``: ``shares`` less their median, so that the median page stays as it is;
        ``level``: one number for all pages, by which the attention to those that may be left out is estimated too
        low; ``oracle``: what pages truly draw.
    factor
        Corrections are multiplied by it.
    limit
        Most nats to either side.
    largest
        Share of the pages that are corrected, those that the prompt's last tokens attended most.
    """

    by: str = "plain"
    factor: float = 1.0
    limit: float = 3.0
    largest: float = 1.0

    def of(self, learned: Learned) -> torch.Tensor:
        """Corrections, ``[H, N]``, in whole codes."""
        shares = learned.true - learned.estimated
        masses = learned.true - learned.mass
        if self.by == "level":
            free = ~forced(shares.shape[1])
            found = (learned.true[:, free].logsumexp(1) - learned.mass[:, free].logsumexp(1))[:, None].expand(
                shares.shape
            )
        else:
            found = {
                "shares": shares,
                "masses": masses,
                "centred": shares - shares.median(1, keepdim=True).values,
            }[self.by]
        if self.largest < 1:
            place = learned.true.argsort(1, descending=True).argsort(1)
            found = found * (place < self.largest * shares.shape[1])
        return (self.factor * found.clamp(-self.limit, self.limit) / STEP).round() * STEP


def learn(steps: LayerSteps) -> Learned:
    """What steps tell that attend everything."""
    layer = steps.layer
    weights = layer.weights.unflatten(-1, (steps.pages, -1)).sum(-1)
    mass = layer.mass[..., None]

    def mean(share: torch.Tensor) -> torch.Tensor:
        return share.mean((1, 2)).clamp(min=LEAST_SHARE).log()

    return Learned(mean(weights / mass), mean(estimated_shares(steps)), mean((steps.lse - mass.log()).exp()))


def estimated_shares(steps: LayerSteps) -> torch.Tensor:
    """Shares of pages with the tokens behind them known, ``[H, T, G, N]``."""
    whole = torch.logaddexp(steps.lse.logsumexp(-1), steps.layer.recent_mass.log())
    return (steps.lse - whole[..., None]).exp()


def select(steps: LayerSteps, way: Way, learned: Learned, mean: float) -> torch.Tensor:
    """The best ``mean`` of the pages, ``[H, T, N]``."""
    if way.by == "oracle":
        shares = steps.layer.weights.unflatten(-1, (steps.pages, -1)).sum(-1) / steps.layer.mass[..., None]
        return best(shares.mean(2), mean * steps.pages)
    score = estimated_shares(steps).mean(2).clamp(min=LEAST_SHARE).log()
    if way.by != "plain":
        score = score + way.of(learned)[:, None]
    return best(score, mean * steps.pages)


def tail(steps: LayerSteps, way: Way, learned: Learned) -> torch.Tensor:
    """What pages that are left out are attended by, ``[H, T, G, N]``."""
    if way.by == "plain":
        return steps.lse
    if way.by == "oracle":
        return steps.layer.weights.unflatten(-1, (steps.pages, -1)).sum(-1).log()
    return steps.lse + way.of(learned)[:, None, None]


def tail_bias(steps: LayerSteps, chosen: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """Logarithm of the estimated over the true attention to what is left out, ``[H, T, G]``."""
    left = ~chosen[:, :, None]
    true = steps.layer.weights.unflatten(-1, (steps.pages, -1)).sum(-1)
    floor = math.exp(-60)
    return ((lse.exp() * left).sum(-1) + floor).log() - ((true * left).sum(-1) + floor).log()
