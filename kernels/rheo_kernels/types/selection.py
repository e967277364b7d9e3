"""Selected, RunnersUp, HitCounters, Stamps: what one layer's selection gives; ResidencyBonus: what it prefers."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Selected(NamedTuple):
    """The selection of a batch: columns ``[0, num_hits)`` are hits, ``[num_hits, num_selected)`` misses.

    Within hits and within misses, pages keep the order of the request's page list.
    """

    pages: torch.Tensor
    """Logical pages, ``[B, H, S]``, int32, -1 where nothing was selected."""
    hits: torch.Tensor
    """Frames of resident pages, else -1, ``[B, H, S]``, int32."""
    misses: torch.Tensor
    """Logical (= host) pages without a frame, else -1, ``[B, H, S]``, int32."""
    valid: torch.Tensor
    """Tokens of each page that belong to the request, ``[B, H, S]``, int32; 0 where nothing was selected."""
    indices: torch.Tensor
    """Indices into the request's page list, else -1, ``[B, H, S]``, int32."""
    num_hits: torch.Tensor
    """``[B, H]``, int32."""
    num_selected: torch.Tensor
    """``[B, H]``, int32."""

    @classmethod
    def allocate(cls, batch: int, heads: int, width: int, device: torch.device | str) -> Selected:
        """Buffers for a batch of ``B`` requests, ``H`` KV heads and ``S`` columns."""
        lists = (torch.empty((batch, heads, width), dtype=torch.int32, device=device) for _ in range(5))
        counts = (torch.empty((batch, heads), dtype=torch.int32, device=device) for _ in range(2))
        return cls(*lists, *counts)


class RunnersUp(NamedTuple):
    """Pages without a frame that a selection left out, of the best ones, in any order."""

    pages: torch.Tensor
    """``[B, H, R]``, int32; columns from ``counts`` on mean nothing."""
    counts: torch.Tensor
    """``[B, H]``, int32."""


class HitCounters(NamedTuple):
    """The recorder's counters of one layer; every selection is added to the row of its request's slot."""

    rates: torch.Tensor
    """Sum over steps of hits / selected, ``[R, H]``, float32, any stride over ``R``."""
    hits: torch.Tensor
    """``[R, H]``, int64, strides of ``rates``."""
    selected: torch.Tensor
    """``[R, H]``, int64, strides of ``rates``."""
    slots: torch.Tensor
    """Row of each request in the recorder's counters, ``[B]``, int64."""


class Stamps(NamedTuple):
    """When each page of one layer was selected last; every selection stamps its pages with the current step."""

    step: torch.Tensor
    """Number of the step, 1 or more, scalar, int32."""
    selected: torch.Tensor
    """Step in which each page was selected last, 0 = never, ``[H, N]``, int32."""


class ResidencyBonus(NamedTuple):
    """By how much a page that has a frame is preferred in a selection."""

    nats: float
    """Added to its score, 0 or more; scores are logarithms of shares."""
    floors: torch.Tensor
    """The batch's floors, ``[B]``, float32: a request that has one, above 0, is selected for without a bonus."""
