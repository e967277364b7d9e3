"""RheoAllocator: SGLang's paged allocator over logical pages, which tells the page table what was freed."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator

from rheo_sglang.pools.kv_pool import RheoKVPool


class RheoAllocator(PagedTokenToKVPoolAllocator):
    """Hands out slots of the logical space; every page that comes back is reclaimed everywhere.

    Parameters
    ----------
    kvcache
        The pool whose page table is told.
    need_sort
        As in SGLang's allocator.

    Attributes
    ----------
    admission
        Set by the scheduler that holds this allocator: a ``SchedulerAdmission``, which its hooks ask; None if nothing
        decides who may join a batch.
    storage
        Set by the same: a ``StorageTier``, which is told what is freed; None without one.
    """

    admission: Any = None
    storage: Any = None

    def __init__(self, kvcache: RheoKVPool, need_sort: bool) -> None:
        self.table = kvcache.table
        super().__init__(
            kvcache.size, kvcache.page_size, kvcache.dtype, str(kvcache.device), kvcache, need_sort=need_sort
        )

    def _release_page_ids(self, *page_ids: torch.Tensor) -> None:
        for pages in page_ids:
            self.table.release(pages)
            if self.storage is not None:
                self.storage.note_freed(pages)
        super()._release_page_ids(*page_ids)

    def clear(self) -> None:
        """Free every page."""
        self.table.clear()
        if self.storage is not None:
            self.storage.note_cleared()
        super().clear()
