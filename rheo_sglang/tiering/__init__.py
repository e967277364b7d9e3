"""Tiering policies: what a resident page is worth, hence which one gives up its frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rheo_sglang.tiering.base import SELECTED, Policy
from rheo_sglang.tiering.importance import Importance
from rheo_sglang.tiering.lfu import LeastFrequentlyUsed
from rheo_sglang.tiering.lru import LeastRecentlyUsed

if TYPE_CHECKING:
    from rheo_sglang.page_table import PageTable

POLICIES: dict[str, type[Policy]] = {
    "importance": Importance,
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
}


def make_policy(name: str, table: PageTable) -> Policy:
    """Build a policy over a page table."""
    return POLICIES[name](table)


__all__ = ["POLICIES", "SELECTED", "Policy", "make_policy"]
