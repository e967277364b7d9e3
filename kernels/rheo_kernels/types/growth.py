"""Growth: the recorder's counters of budgets that grew."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Growth(NamedTuple):
    """How often a KV head of one layer was allowed more than the budget, and how many pages more."""

    samples: torch.Tensor
    """``[R, H]``, int32, any stride over ``R``."""
    pages: torch.Tensor
    """``[R, H]``, int64, strides of ``samples``."""
    slots: torch.Tensor
    """Row of each request in the recorder's counters, ``[B]``, int64; no two live requests share one."""
