"""Tail: what attention reads of the pages that a selection left out; Coverage: how much attention they do not have."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.types.subcentroids import SubcentroidLayout


class Coverage(NamedTuple):
    """The recorder's sums of the share of attention that the selected pages have, in one layer."""

    shares: torch.Tensor
    """``[R, H]``, float32, contiguous in ``H``: every step adds ``1 - exp(tail LSE - LSE)``, a mean over the group; 1
    where nothing is left out."""
    slots: torch.Tensor
    """Row of each request, ``[B]``, int64; padding has one of its own."""


class Tail(NamedTuple):
    """The pages that a selection left out, in one layer: their estimates, and the summaries that hold their mean V."""

    lse: torch.Tensor
    """Estimates, ``[B, Hq, M]``, float32, contiguous; ``-inf`` for selected pages and past a list's end."""
    summaries: torch.Tensor
    """``[H, N, W]``, uint8, the last two dimensions contiguous."""
    pages: torch.Tensor
    """Page lists, ``[B, M]``, int32, contiguous in ``M``; any number where the estimates are ``-inf``."""
    layout: SubcentroidLayout
    """Of the summaries."""
    num_pages: torch.Tensor | None = None
    """Pages of each list, ``[B]``, int32, where known: nothing is read past them. Written before the step's kernels."""
    coverage: Coverage | None = None
    """Where attention counts the share that these pages do not have; None: nowhere."""
