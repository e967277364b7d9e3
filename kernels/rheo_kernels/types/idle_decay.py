"""IdleDecay: how the worth of pages decays that no running request lists."""

from __future__ import annotations

from typing import NamedTuple

import torch


class IdleDecay(NamedTuple):
    """Worth is multiplied by a factor for every step since a running request last listed the page."""

    factor: float
    """In (0, 1]."""
    step: torch.Tensor
    """Steps so far, scalar, int32."""
    last_active: torch.Tensor
    """Step in which a running request last listed each page, ``[N]``, int32."""
