"""Budgets: what bounds the pages that requests may select, by their settings and their number of pages."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Budgets(NamedTuple):
    """Tables that a batch's description looks up: ``K`` rows of settings, one of them for each of ``R`` requests."""

    caps: torch.Tensor
    """Pages that every KV head of a request may select, ``[K, max_pages + 1]``, int32."""
    limits: torch.Tensor
    """The most to which scores may let that grow, ``[K, max_pages + 1]``, int32."""
    floors: torch.Tensor
    """Share of the estimated attention that selected pages should hold, ``[K]``, float32; 0 for no floor."""
    levels: torch.Tensor | None
    """Margin below which the step after it selects up to its limit, in nats, ``[K]``, float32; None without margins."""
    setting_of: torch.Tensor
    """Row of settings of each row of SGLang's token table, ``[R]``, int32."""
    margins: torch.Tensor | None
    """Margin of each row's latest pass, ``[R]``, float32; None without margins."""
