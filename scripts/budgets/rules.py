"""Rules: which pages each KV head selects in a step, by one parameter that decides how many these are on average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from budgets.steps import View
from selection.judge import SINK, WINDOW

Chosen = torch.Tensor
"""Pages that are selected, ``[H, T, N]``, bool."""
LEAST, MOST = 0.25, 4.0
"""Bounds of a bounded rule, as multiples of the mean that it is to have."""


@dataclass(frozen=True)
class Where:
    """What a rule knows besides scores.

    Attributes
    ----------
    layer
        Index of the layer.
    mean
        Share of the pages that is to be selected on average.
    profile
        Share of the pages that each layer and KV head selects by a rule's profile, ``[L, H]``.
    """

    layer: int
    mean: float
    profile: torch.Tensor | None = None


def forced(pages: int) -> torch.Tensor:
    """Pages that are always selected, ``[N]``."""
    place = torch.arange(pages)
    return (place < SINK) | (place >= pages - WINDOW)


def ranked(priority: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Order of pages, forced ones first, and each page's place in it, ``[H, T, N]``."""
    order = priority.masked_fill(forced(priority.shape[-1]), torch.inf).argsort(-1, descending=True)
    return order, order.argsort(-1)


def best(priority: torch.Tensor, count: torch.Tensor | float) -> Chosen:
    """The ``count`` best pages, ``[H, T, 1]``, forced ones among them."""
    place = ranked(priority)[1]
    return (place < count) | forced(priority.shape[-1])


def above(priority: torch.Tensor, level: float) -> Chosen:
    """Pages of a priority above a level, and the forced ones."""
    return (priority > level) | forced(priority.shape[-1])


def needed(view: View, coverage: float) -> torch.Tensor:
    """How many best pages hold ``coverage`` of the estimated attention, ``[H, T, 1]``."""
    order, _ = ranked(view.share)
    held = view.share.gather(-1, order).cumsum(-1)
    return 1 + (held < coverage).sum(-1, keepdim=True)


def bounded(count: torch.Tensor, pages: int, mean: float) -> torch.Tensor:
    """Counts within a bounded rule's bounds."""
    return count.clamp(LEAST * mean * pages, MOST * mean * pages)


def fixed(view: View, parameter: float, where: Where) -> Chosen:
    """The same share everywhere."""
    return best(view.share, parameter * view.share.shape[-1])


def coverage(view: View, parameter: float, where: Where) -> Chosen:
    """Best pages until they hold a share of the estimated attention (top-p)."""
    return best(view.share, needed(view, parameter))


def bounded_coverage(view: View, parameter: float, where: Where) -> Chosen:
    """Top-p between bounds."""
    pages = view.share.shape[-1]
    return best(view.share, bounded(needed(view, parameter), pages, where.mean))


def threshold(view: View, parameter: float, where: Where) -> Chosen:
    """Pages whose estimated share exceeds a level: all heads, layers, steps and requests compete."""
    return above(view.share, parameter)


def heads(view: View, parameter: float, where: Where) -> Chosen:
    """The KV heads of a layer compete for one budget in every step."""
    count, _, pages = view.share.shape
    order = view.share.masked_fill(forced(pages), torch.inf).transpose(0, 1).flatten(1)
    level = order.sort(-1, descending=True).values[
        :, min(round(parameter * count * pages), count * pages - 1)
    ]
    return (view.share > level[None, :, None]) | forced(pages)


def profile(view: View, parameter: float, where: Where) -> Chosen:
    """Every layer and head has a share of its own, the mean of what a level of the share gave on other texts."""
    assert where.profile is not None
    share = where.profile[where.layer][:, None, None]
    return best(view.share, parameter * share * view.share.shape[-1])


def error(view: View, parameter: float, where: Where) -> Chosen:
    """Pages whose estimated error exceeds a level."""
    return above(view.error, parameter)


def fixed_error(view: View, parameter: float, where: Where) -> Chosen:
    """The same share everywhere, of the pages with the greatest estimated error."""
    return best(view.error, parameter * view.error.shape[-1])


def fixed_true_share(view: View, parameter: float, where: Where) -> Chosen:
    """Oracle: the same share everywhere, by the true share of attention."""
    return best(view.true_share, parameter * view.share.shape[-1])


def true_share(view: View, parameter: float, where: Where) -> Chosen:
    """Oracle: pages whose true share exceeds a level."""
    return above(view.true_share, parameter)


def true_error(view: View, parameter: float, where: Where) -> Chosen:
    """Oracle: pages whose true error exceeds a level."""
    return above(view.true_error, parameter)


Rule = Callable[[View, float, Where], Chosen]
RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        fixed,
        coverage,
        bounded_coverage,
        threshold,
        heads,
        profile,
        error,
        fixed_error,
        fixed_true_share,
        true_share,
        true_error,
    )
}
"""Every rule by name."""


def floored(view: View, share: float, floor: float) -> Chosen:
    """Conservative: a fixed share, and more where it holds less than ``floor`` of the estimated attention."""
    return best(view.share, needed(view, floor).clamp(min=share * view.share.shape[-1]))
