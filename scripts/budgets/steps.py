"""LayerSteps: one layer's decode steps over pages, what their summaries say of them, and attention to a selection."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from selection.judge import MOST_LOG_WEIGHT
from selection.layer import Layer
from selection.rounding import symmetric
from selection.summaries import Summary, subcentroids


class PageData(NamedTuple):
    """What is stored of a layer's pages."""

    summary: Summary
    value: torch.Tensor
    """Mean V in 4 bits, ``[H, N, D]``."""
    spread: torch.Tensor
    """Root mean square distance of a page's V to its mean V, over the same of the head's V, ``[H, N]``."""


class View(NamedTuple):
    """What rules look at, for every KV head, step and page ``[H, T, N]``; shares are of the steps' whole attention."""

    share: torch.Tensor
    """Estimated share of the attention to the pages, mean over the group, as scores have it."""
    error: torch.Tensor
    """Estimated error of attending the page by its mean V: share, times how unevenly its rows draw it, times spread."""
    true_share: torch.Tensor
    true_error: torch.Tensor
    """Norm of what attending the page by its estimate and mean V gets wrong in the output, mean over the group."""


class Outcome(NamedTuple):
    """Attention to a selection and the tail of the rest."""

    out: torch.Tensor
    """``[H, T, G, D]``."""
    error: torch.Tensor
    """Relative L2 distance to dense attention, ``[H, T, G]``."""
    covered: torch.Tensor
    """True share of the attention that is attended exactly, mean over the group, ``[H, T]``."""
    estimated: torch.Tensor
    """The same of the estimated attention to the prompt, ``[H, T]``: what a rule or a mode could know."""


def page_data(keys: torch.Tensor, values: torch.Tensor, page_size: int, row_tokens: int) -> PageData:
    """Summaries of pages of keys and values ``[H, L, D]``."""
    paged = values.unflatten(1, (-1, page_size))
    mean = paged.mean(2)
    deviation = (paged - mean[:, :, None]).square().sum(-1).mean(-1)
    whole = (values - values.mean(1, keepdim=True)).square().sum(-1).mean(-1)
    spread = (deviation / whole[:, None]).sqrt()
    return PageData(subcentroids(keys.unflatten(1, (-1, page_size)), row_tokens), symmetric(mean, 4), spread)


class LayerSteps:
    """One layer's steps; every step reads the same prompt, and the tokens of the steps before it exactly.

    Parameters
    ----------
    layer
        Queries, keys and values.
    data
        What is stored of the prompt's pages.
    page_size
        Tokens of a page.
    """

    def __init__(self, layer: Layer, data: PageData, page_size: int) -> None:
        self.layer, self.data, self.page_size = layer, data, page_size
        rows, steps = data.summary.rows, data.summary.steps
        assert steps is not None
        count = rows.shape[2]
        logits = self._heads(layer.flat @ rows.flatten(1, 2).transpose(1, 2)).unflatten(-1, (-1, count))
        first = logits.logsumexp(-1)
        noise = self._heads(layer.flat.square() @ steps.square().transpose(1, 2) / 24)
        self.lse = first + math.log(page_size / count) - noise - layer.top
        self._logits, self._first = logits, first
        self.pages = self.lse.shape[-1]
        self.share = self.lse.softmax(-1).mean(2)

    def _heads(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.unflatten(1, (self.layer.steps, self.layer.group))

    @property
    def uneven(self) -> torch.Tensor:
        """How unevenly a page's rows draw attention, ``[H, T, G, N]``; 0: attending their mean V is exact."""
        count = self._logits.shape[-1]
        # Rows that draw all alike have sum of squares 1 / R.
        even = (2 * (self._logits - self._first[..., None])).exp().sum(-1)
        return ((even - 1 / count) / (1 - 1 / count)).clamp(0, 1).sqrt()

    def view(self) -> View:
        """What rules look at, the true figures among it."""
        layer, spread = self.layer, self.data.spread[:, None]
        shares = self.lse.softmax(-1)
        weights = layer.weights.unflatten(-1, (self.pages, -1))
        exact = torch.einsum(
            "hqnp,hnpd->hqnd",
            weights.flatten(1, 2),
            layer.values.unflatten(1, (self.pages, -1)),
        )
        estimated = (
            self.lse.clamp(max=MOST_LOG_WEIGHT).exp().flatten(1, 2)[..., None] * self.data.value[:, None]
        )
        wrong = self._heads((exact - estimated).norm(dim=-1)) / layer.mass[..., None]
        scale = layer.dense.norm(dim=-1)[..., None]
        return View(
            self.share,
            (shares * self.uneven).mean(2) * spread,
            (weights.sum(-1) / layer.mass[..., None]).mean(2),
            (wrong / scale).mean(2),
        )

    def attend(self, chosen: torch.Tensor, lse: torch.Tensor | None = None) -> Outcome:
        """Attend the chosen pages ``[H, T, N]`` exactly and the rest by its estimates, or by ``lse [H, T, G, N]``."""
        layer, mask = self.layer, chosen[:, :, None]
        estimates = self.lse if lse is None else lse
        weights = (layer.weights.unflatten(-1, (self.pages, -1)) * mask[..., None]).flatten(-2)
        left = estimates.clamp(max=MOST_LOG_WEIGHT).exp() * ~mask
        exact = weights.sum(-1) + layer.recent_mass
        out = self._heads(weights.flatten(1, 2) @ layer.values + left.flatten(1, 2) @ self.data.value)
        out = (out + layer.recent) / (exact + left.sum(-1))[..., None]
        error = (out - layer.dense).norm(dim=-1) / layer.dense.norm(dim=-1).clamp(min=1e-20)
        estimated = exact / (exact + left.sum(-1))
        return Outcome(out, error, (exact / layer.mass).mean(2), estimated.mean(2))
