"""Tiering policies: what a resident page is worth, hence which one gives up its frame."""

from __future__ import annotations

import torch

from rheo_sglang.tiering.base import SELECTED, Policy
from rheo_sglang.tiering.importance import Importance
from rheo_sglang.tiering.lfu import LeastFrequentlyUsed
from rheo_sglang.tiering.lru import LeastRecentlyUsed

POLICIES: dict[str, type[Policy]] = {
    "importance": Importance,
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
}


def make_policy(name: str, importance: torch.Tensor) -> Policy:
    """Build a policy over the page table's importance ``[L, H, N]``."""
    return POLICIES[name](importance)


__all__ = ["POLICIES", "SELECTED", "Policy", "make_policy"]
