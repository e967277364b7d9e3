"""A radix cache over rheo's pools with a storage tier in a folder, whose threads the tests step by hand."""

from __future__ import annotations

import hashlib
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from rheo_sglang.config import RheoConfig
from rheo_sglang.kv_dtypes import compute_dtype
from rheo_sglang.pools.allocator import RheoAllocator
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.storage.store import FOLDER_VARIABLE, open_backend
from rheo_sglang.storage.tier import PrefetchPolicy, StorageTier
from rheo_sglang.tree.nodes import slot_pages
from unit import sglang_versions

PAGE, LAYERS, HEADS, DIM = 16, 2, 3, 32
WAITS = PrefetchPolicy("wait_complete", threshold=PAGE)


def model(seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(8, 8, generator=generator))
        layer.bias.zero_()
    return layer


def configuration(**values: Any) -> Any:
    return SimpleNamespace(to_dict=lambda: {"rope_theta": 10000.0, "model_type": "llama", **values})


class World:
    """What one server has; several of them may share a folder, one after the other."""

    rids = count()

    def __init__(
        self,
        folder: Path,
        monkeypatch: Any,
        *,
        pages: int = 64,
        policy: PrefetchPolicy = WAITS,
        settings: dict[str, Any] | None = None,
        config: RheoConfig | None = None,
        dtype: torch.dtype = torch.float32,
        page_size: int = PAGE,
        weights: int = 0,
        backend: Any = None,
    ) -> None:
        monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
        self.folder, self.page_size, self.pages = folder, page_size, pages
        shape = (dtype, HEADS, DIM, LAYERS)
        self.pool = RheoKVPool(
            pages * page_size,
            page_size,
            *shape,
            "cpu",
            4,
            config or RheoConfig(),
            start_layer=0,
            compute_dtype=compute_dtype(dtype, torch.float32),
        )
        self.table = self.pool.table
        self.allocator = RheoAllocator(self.pool, need_sort=False)
        rows = ReqToTokenPool(
            size=2, max_context_len=pages * page_size, device="cpu", enable_memory_saver=False
        )
        self.tree = sglang_versions.build_tree(self.allocator, rows)
        if backend is None:
            backend = open_backend("file", {"max_size": "1Gi", **(settings or {})}, "tiny")
        self.backend = backend
        self.tier = StorageTier(self.tree, self.allocator, backend, policy, model(weights), configuration())
        self.allocator.storage = self.tier
        self.counters = self.tier.counters

    def tokens(self, *kinds: int) -> list[int]:
        """A token sequence of whole pages, a page of each kind."""
        return [1 + kind for kind in kinds for _ in range(self.page_size)]

    def page(self, prefix: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Blocks, summaries and worth of the page that a prefix ends with: they depend on all of it."""
        digest = hashlib.sha256(repr(prefix).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
        blocks = torch.rand(LAYERS, HEADS, 2, DIM * self.page_size, generator=generator)
        shape = (LAYERS, HEADS, *self.table.summaries.shape[3:])
        summaries = torch.randint(0, 100, shape, generator=generator).to(self.table.summaries.dtype)
        return blocks.to(self.pool.dtype), summaries, torch.rand(LAYERS, HEADS, generator=generator)

    def prefixes(self, tokens: list[int], start: int = 0) -> list[list[int]]:
        return [tokens[:end] for end in range(start + self.page_size, len(tokens) + 1, self.page_size)]

    def cache(self, tokens: list[int], extra_key: str | None = None) -> bool:
        """Have a request compute what the tree lacks of a prefix of whole pages, and cache it; whether it had room."""
        key = sglang_versions.radix_key(tokens, extra_key)
        found, node = sglang_versions.match(self.tree, tokens, extra_key)
        receipt = sglang_versions.lock(self.tree, node) if found.numel() else None
        slots = self.allocate(len(tokens) - found.numel())
        if slots is not None:
            for page, prefix in zip(
                slot_pages(slots, self.page_size).tolist(), self.prefixes(tokens, found.numel()), strict=True
            ):
                blocks, summaries, worth = self.page(prefix)
                self.pool.host[:, page] = blocks
                self.table.summaries[:, :, page] = summaries
                self.table.policy.worth[:, :, page] = worth
                self.table.summarised[page] = True
            value = torch.cat([found, slots])
            self.tree.insert(InsertParams(key=key, value=value, prev_prefix_len=found.numel()))
        if receipt is not None:
            sglang_versions.unlock(self.tree, node, receipt)
        return slots is not None

    def allocate(self, tokens: int) -> torch.Tensor | None:
        from rheo_sglang import compat

        if not tokens:
            return torch.empty(0, dtype=torch.int64)
        slots = compat.allocate(self.tree, self.allocator, tokens)
        self.table.settle()
        return slots

    def request(self, tokens: list[int], extra_key: str | None = None) -> Any:
        """A request with a prompt; the last token is computed whatever is cached, so one is added."""
        return sglang_versions.request(f"rid-{next(self.rids)}", [*tokens, 0], extra_key)

    def write_all(self) -> None:
        while len(self.tier.pending):
            self.tier.writer.step(0)

    def fetch(self, tokens: list[int], extra_key: str | None = None) -> int:
        """Have a request wait for its prefix as long as it takes; returns the tokens that are cached then."""
        request = self.request(tokens, extra_key)
        self.tier.prefetch(request)
        self.wait_for(request.rid)
        return self.cached(tokens, extra_key)

    def wait_for(self, rid: str) -> None:
        while not self.tier.ready(rid):
            self.tier.reader.step()

    def cached(self, tokens: list[int], extra_key: str | None = None) -> int:
        return sglang_versions.match(self.tree, tokens, extra_key)[0].numel()

    def flush(self) -> None:
        self.tree.reset()
        self.allocator.clear()
        self.table.settle()

    def check(self, tokens: list[int], extra_key: str | None = None) -> None:
        """Assert that every cached page of a prefix holds what was computed for it, bit by bit."""
        self.table.settle()
        slots, _ = sglang_versions.match(self.tree, tokens, extra_key)
        pages = slot_pages(slots, self.page_size).tolist()
        for page, prefix in zip(pages, self.prefixes(tokens), strict=False):
            blocks, summaries, worth = self.page(prefix)
            assert torch.equal(self.pool.host[:, page], blocks)
            assert torch.equal(self.table.summaries[:, :, page], summaries)
            assert torch.equal(self.table.policy.worth[:, :, page], worth)
            assert self.table.summarised[page]

    def accounts_for_every_page(self) -> bool:
        """Whether no page is lost and none is locked while no request waits."""
        cached = self.tree.evictable_size() + self.tree.protected_size()
        return (
            cached + self.allocator.available_size() == self.pages * self.page_size
            and self.tree.protected_size() == 0
        )

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.bin"))
