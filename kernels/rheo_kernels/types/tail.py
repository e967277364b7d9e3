"""Tail: what attention reads of the pages that a selection left out."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.types.subcentroids import SubcentroidLayout


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
