"""SGLang's radix tree under random operations: nodes, allocator and page table stay in step."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from unit import sglang_versions

from rheo_sglang.config import RheoConfig
from rheo_sglang.importance.interface import CachedImportance
from rheo_sglang.pools.allocator import RheoAllocator
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.tiering import POLICIES
from rheo_sglang.tree.importance import TreeImportance
from rheo_sglang.tree.nodes import describe_tree, slot_pages, walk

LAYERS, HEADS, PAGES, FRAMES = 2, 2, 24, 6

Prefix = tuple[int, ...]
prefixes = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)
"""Token sequences a page at a time; few kinds of pages, so that they share prefixes and split each other."""


class RadixTreeMachine(RuleBasedStateMachine):
    """One dictionary says which page every cached prefix ends with, another what that page is worth."""

    @initialize(
        page_size=st.sampled_from([16, 32, 64]),
        policy=st.sampled_from(sorted(POLICIES.names())),
        kv_events=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def build(self, page_size: int, policy: str, kv_events: bool, seed: int) -> None:
        self.page_size = page_size
        self.random = torch.Generator().manual_seed(seed)
        self.pool = RheoKVPool(
            PAGES * page_size,
            page_size,
            torch.float32,
            HEADS,
            4,
            LAYERS,
            "cpu",
            FRAMES,
            RheoConfig(policy=policy),
        )
        self.allocator = RheoAllocator(self.pool, need_sort=False)
        rows = ReqToTokenPool(size=2, max_context_len=page_size, device="cpu", enable_memory_saver=False)
        self.tree = sglang_versions.build_tree(self.allocator, rows, kv_events)
        self.table = self.pool.table
        self.read = TreeImportance(self.table, self.tree, page_size)
        assert isinstance(self.read, CachedImportance)
        self.kv_events = kv_events
        self.announced: set[int] = set()
        self.cached: dict[Prefix, int] = {}
        self.importance: dict[int, torch.Tensor] = {}
        self.locked: list[tuple[Prefix, Any, Any]] = []
        self.start = self.table.counters()

    def tokens(self, prefix: Prefix, extra: int = 0) -> list[int]:
        return [kind for kind in prefix for _ in range(self.page_size)] + [9] * extra

    def slots(self, pages: list[int]) -> torch.Tensor:
        offsets = torch.arange(self.page_size)
        return (torch.tensor(pages, dtype=torch.int64)[:, None] * self.page_size + offsets).flatten()

    def cached_part(self, prefix: Prefix) -> Prefix:
        count = 0
        while count < len(prefix) and prefix[: count + 1] in self.cached:
            count += 1
        return prefix[:count]

    def allocate(self, count: int) -> list[int] | None:
        """Pages from the allocator, described, resident as far as frames allow, and worth something."""
        slots = self.allocator.alloc(count * self.page_size)
        if slots is None:
            return None
        pages = slot_pages(slots, self.page_size)
        self.table.settle()
        assert not self.table.summarised[pages].any(), "a page was handed out with leftovers"
        assert (self.table.frame_of[:, :, pages] < 0).all(), "a page was handed out with frames"
        self.table.note_summaries(slots, self.page_size)
        self.table.policy.worth[:, :, pages] = torch.rand(LAYERS, HEADS, count, generator=self.random)
        for page in pages.tolist():
            self.importance[page] = self.table.policy.worth[:, :, page].clone()
            for layer, head in ((0, 0), (1, 1)):
                free = (self.table.page_of[layer, head] < 0).nonzero().flatten()
                if len(free):
                    self.table.page_of[layer, head, free[0]] = page
                    self.table.frame_of[layer, head, page] = free[0].int()
        return pages.tolist()

    @rule(prefix=prefixes, reuse=st.booleans(), extra=st.integers(0, 15))
    def insert(self, prefix: Prefix, reuse: bool, extra: int) -> None:
        """A request is cached: one that found its prefix, or one that computed all of it beside another."""
        shared = self.cached_part(prefix) if reuse else ()
        found, _ = sglang_versions.match(self.tree, self.tokens(shared))
        assert found.numel() == len(shared) * self.page_size
        computed = self.allocate(len(prefix) - len(shared))
        if computed is None:
            return
        tail = self.allocator.alloc(self.page_size) if extra else torch.empty(0, dtype=torch.int64)
        if tail is None:
            self.allocator.free(self.slots(computed))
            self.forget(computed)
            return
        self.tree.insert(
            InsertParams(
                key=sglang_versions.radix_key(self.tokens(prefix, extra)),
                value=torch.cat([found, self.slots(computed), tail[:extra]]),
                prev_prefix_len=len(shared) * self.page_size,
            )
        )
        self.allocator.free(tail[:extra])
        for count, page in enumerate(computed, len(shared) + 1):
            survivor = self.cached.setdefault(prefix[:count], page)
            if survivor != page:
                self.importance[survivor] = torch.maximum(self.importance[survivor], self.importance[page])
                self.forget([page])

    def forget(self, pages: list[int]) -> None:
        for page in pages:
            del self.importance[page]

    @rule(prefix=prefixes, extra=st.integers(0, 15))
    def match_and_split(self, prefix: Prefix, extra: int) -> None:
        shared = self.cached_part(prefix)
        slots, _ = sglang_versions.match(self.tree, self.tokens(prefix, extra))
        expected = [self.cached[shared[:count]] for count in range(1, len(shared) + 1)]
        assert torch.equal(slots, self.slots(expected))

    @rule(prefix=prefixes)
    def lock(self, prefix: Prefix) -> None:
        """A request starts to run on a cached prefix."""
        _, node = sglang_versions.match(self.tree, self.tokens(prefix))
        self.locked.append((self.cached_part(prefix), node, sglang_versions.lock(self.tree, node)))

    @precondition(lambda self: self.locked)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        _, node, receipt = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
        sglang_versions.unlock(self.tree, node, receipt)

    @rule(pages=st.integers(1, PAGES))
    def evict(self, pages: int) -> None:
        before = self.tree.evictable_size()
        self.tree.evict(EvictParams(num_tokens=pages * self.page_size))
        left = self.prefixes_in_tree()
        assert left.items() <= self.cached.items()
        evicted = [page for prefix, page in self.cached.items() if prefix not in left]
        assert len(evicted) >= min(pages, before // self.page_size)
        for prefix, _, _ in self.locked:
            assert not prefix or prefix in left, "a locked prefix was evicted"
        self.cached = left
        self.forget(evicted)

    @rule()
    def flush(self) -> None:
        """What SGLang does on ``/flush_cache``, which it refuses while requests run."""
        while self.locked:
            _, node, receipt = self.locked.pop()
            sglang_versions.unlock(self.tree, node, receipt)
        self.tree.reset()
        self.allocator.clear()
        self.cached.clear()
        self.importance.clear()

    def nodes(self) -> list[Any]:
        return list(walk(self.tree.tree_core.root_node))

    def node_pages(self, node: Any) -> torch.Tensor:
        return slot_pages(node.component_data[ComponentType.FULL].value, self.page_size)

    def prefixes_in_tree(self) -> dict[Prefix, int]:
        """Every page of every node under the whole prefix that ends with it."""
        found: dict[Prefix, int] = {}
        above: dict[int, Prefix] = {self.tree.tree_core.root_node.id: ()}
        for node in self.nodes():
            prefix = above[node.parent.id]
            kinds = list(node.key.token_ids)[:: self.page_size]
            for kind, page in zip(kinds, self.node_pages(node).tolist(), strict=True):
                prefix = (*prefix, kind)
                found[prefix] = page
            above[node.id] = prefix
        return found

    @invariant()
    def the_tree_holds_exactly_what_was_inserted(self) -> None:
        assert self.prefixes_in_tree() == self.cached
        assert len(set(self.cached.values())) == len(self.cached), "two prefixes share a page"

    @invariant()
    def tree_and_allocator_account_for_every_page(self) -> None:
        cached = len(self.cached) * self.page_size
        assert self.tree.evictable_size() + self.tree.protected_size() == cached
        assert self.allocator.available_size() == PAGES * self.page_size - cached
        protected = {prefix[:count] for prefix, _, _ in self.locked for count in range(1, len(prefix) + 1)}
        assert self.tree.protected_size() >= len(protected) * self.page_size
        if not self.locked:
            assert self.tree.protected_size() == 0

    @invariant()
    def pages_and_frames_are_each_others_inverse(self) -> None:
        self.table.check()

    @invariant()
    def cached_pages_keep_their_rows_and_freed_pages_have_none(self) -> None:
        self.table.settle()
        kept = sorted(self.cached.values())
        freed = [page for page in range(PAGES + 1) if page not in kept]
        assert set(kept) == self.importance.keys()
        for page in kept:
            assert torch.equal(self.table.policy.worth[:, :, page], self.importance[page])
        assert self.table.summarised[kept].all()
        assert not self.table.policy.worth[:, :, freed].any()
        assert not self.table.summarised[freed].any()
        assert (self.table.frame_of[:, :, freed] < 0).all()

    @invariant()
    def a_nodes_importance_is_the_mean_of_its_rows(self) -> None:
        """However it was split, and whatever was folded into its pages."""
        self.table.settle()
        for node in self.nodes():
            pages = self.node_pages(node)
            rows = torch.stack([self.importance[page] for page in pages.tolist()])
            torch.testing.assert_close(self.read.of_node(node), rows.mean(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(self.read.of_pages(pages), rows.mean((1, 2)), rtol=1e-5, atol=1e-6)
            assert torch.equal(self.read.of_rows(pages), rows.permute(1, 2, 0))

    @invariant()
    def a_freed_page_has_no_importance_at_once(self) -> None:
        """Before the next forward pass carries the release out."""
        kept = set(self.cached.values())
        freed = torch.tensor([page for page in range(PAGES + 1) if page not in kept])
        assert not self.read.of_pages(freed).any()
        assert not self.read.of_rows(freed).any()
        assert self.read.get_importance(int(freed[-1])) == 0.0

    @invariant()
    def every_block_is_found_by_the_hash_of_its_tokens(self) -> None:
        blocks = self.read.blocks()
        prefix_of = {page: prefix for prefix, page in self.cached.items()}
        prefixes = [prefix_of[page] for page in blocks.pages.tolist()]
        assert len(set(prefixes)) == len(prefixes) == len(self.cached)
        assert blocks.positions.tolist() == [(len(prefix) - 1) * self.page_size for prefix in prefixes]
        expected = [sglang_versions.block_hash(self.tokens(one), self.page_size) for one in prefixes]
        assert blocks.hashes.tolist() == expected
        self.table.settle()
        found = self.read.of_blocks([*expected, 1])
        assert torch.equal(found[:-1], self.read.of_pages(blocks.pages))
        assert found[-1].isnan()

    @invariant()
    def hashes_are_those_that_kv_events_announce(self) -> None:
        if not self.kv_events:
            return
        for event in self.tree.take_events():
            kind = type(event).__name__
            if kind == "BlockStored":
                self.announced |= set(event.block_hashes)
            elif kind == "BlockRemoved":
                self.announced -= set(event.block_hashes)
            else:
                assert kind == "AllBlocksCleared"
                self.announced.clear()
        assert set(self.read.blocks().hashes.tolist()) == self.announced

    @invariant()
    def cached_prefixes_are_listed_from_the_root_to_their_ends(self) -> None:
        self.table.settle()
        whole = [one for one in self.cached if not any(other[:-1] == one for other in self.cached)]
        ends = {self.cached[one]: one for one in whole}
        described = describe_tree(self.tree, self.read, self.page_size, most=PAGES)
        assert len({entry["node"] for entry in described}) == len(described) == len(whole)
        last_page = {node.id: int(self.node_pages(node)[-1]) for node in self.nodes()}
        for entry in described:
            prefix = ends.pop(last_page[entry["node"]])
            pages = [self.cached[prefix[:count]] for count in range(1, len(prefix) + 1)]
            shared = max(
                (
                    sum(other[:count] == prefix[:count] for count in range(1, len(prefix) + 1))
                    for other in whole
                    if other != prefix
                ),
                default=0,
            )
            assert entry["tokens"] == len(prefix) * self.page_size
            assert entry["shared_tokens"] == shared * self.page_size
            assert entry["importance"] == pytest.approx(
                float(self.table.policy.worth[:, :, pages].mean()), abs=6e-5
            )
            resident = (self.table.frame_of[:, :, pages] >= 0).float().mean()
            assert entry["resident"] == pytest.approx(float(resident), abs=6e-5)
            assert entry["locked"] == any(locked[: len(prefix)] == prefix for locked, _, _ in self.locked)
        assert not ends, "a prefix is not listed"
        assert described == sorted(described, key=lambda entry: -entry["tokens"])
        longest = describe_tree(self.tree, self.read, self.page_size, most=2)
        assert longest == described[:2]

    def teardown(self) -> None:
        """Evicting everything returns every counter to its start (invariant 6)."""
        if not hasattr(self, "table"):
            return
        for _, node, receipt in self.locked:
            sglang_versions.unlock(self.tree, node, receipt)
        self.tree.evict(EvictParams(num_tokens=PAGES * self.page_size))
        assert self.allocator.available_size() == PAGES * self.page_size
        assert self.tree.evictable_size() == self.tree.protected_size() == 0
        assert self.nodes() == []
        described = self.table.total_summarised_tokens
        assert self.table.counters() == {**self.start, "total_summarised_tokens": described}


TestRadixTree = RadixTreeMachine.TestCase
TestRadixTree.settings = settings(max_examples=30, stateful_step_count=30)
