"""RheoFullComponent: SGLang's full-attention tree component, whose pages keep their worth when duplicates are freed."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.unified_cache.components import FullComponent

from rheo_sglang.importance.pages import PageImportance
from rheo_sglang.tree.eviction import ImportanceOrder
from rheo_sglang.tree.nodes import slot_pages


class RheoFullComponent(FullComponent):
    """A node's worth, summaries and frames are rows of the page table, found through the node's slots.

    Splits need no work, for the slots are divided and the rows stay. Eviction and abort need none either, for
    freed slots go through the allocator. Only an insert that overlaps an existing node frees pages in favour of
    equal ones; those pass their worth on first.

    With ``tree_eviction`` ``importance`` nodes are evicted in the order of `ImportanceOrder`.
    """

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        pool = params.token_to_kv_pool_allocator.get_kvcache()
        self.order: ImportanceOrder | None = None
        if pool.config.tree_eviction == "importance":
            importance = PageImportance(pool.table)
            self.order = ImportanceOrder(importance, pool.page_size, params.tp_cache_group)
            self.session_ref_eviction_strategy = self.order

    def _evict_device_start(self, request_cnt: int) -> None:
        """Read importance where it is needed before SGLang puts the leaves in order."""
        if self.order is not None:
            self.order.begin_round(self.tree_core)
        super()._evict_device_start(request_cnt)

    def update_component_on_insert_overlap(
        self,
        node: Any,
        prefix_len: int,
        total_prefix_len: int,
        value_slice: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        """Fold duplicate pages into the node's before SGLang frees them."""
        kept = node.component_data[self.component_type].value
        if kept is not None:
            allocator = self.cache.token_to_kv_pool_allocator
            survivors = slot_pages(kept[:prefix_len], allocator.page_size)
            duplicates = slot_pages(value_slice[:prefix_len], allocator.page_size)
            allocator.table.fold(duplicates, survivors)
        return super().update_component_on_insert_overlap(
            node, prefix_len, total_prefix_len, value_slice, *args, **kwargs
        )

    def commit_insert_component_data(self, node: Any, is_new_leaf: bool, *args: Any, **kwargs: Any) -> None:
        """Offer the pages of a new node to storage."""
        super().commit_insert_component_data(node, is_new_leaf, *args, **kwargs)
        storage = self.cache.token_to_kv_pool_allocator.storage
        if storage is not None and is_new_leaf:
            storage.note_insert(node)
