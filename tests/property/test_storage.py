"""The storage tier under random interleavings: whatever ends, tears or restarts, no cached page is wrong or lost."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from unit.storage_world import PAGE, World

from rheo_sglang.storage.tier import PrefetchPolicy

PAGES = 16
prefixes = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)
"""Token sequences a page at a time; few kinds of pages, so that they share prefixes and split each other."""


class StorageMachine(RuleBasedStateMachine):
    """Requests, writer, reader and crashes take turns; pages hold what depends on all tokens before them."""

    @initialize(policy=st.sampled_from(["wait_complete", "best_effort", "timeout"]), room=st.integers(3, 40))
    def build(self, policy: str, room: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.folder = tempfile.TemporaryDirectory()
        self.policy = PrefetchPolicy(policy, threshold=PAGE, base=0.0)
        self.room = room
        self.seen: set[tuple[int, ...]] = set()
        self.begin()

    def begin(self) -> None:
        self.waiting: dict[str, Any] = {}
        self.world = World(Path(self.folder.name), self.patch, pages=PAGES, policy=self.policy)
        self.world.backend._evictor.max_size_bytes = self.room * self.world.tier.memory.format.record_bytes

    @rule(prefix=prefixes)
    def compute(self, prefix: tuple[int, ...]) -> None:
        self.world.cache(self.world.tokens(*prefix))
        self.seen.add(prefix)

    @rule(steps=st.integers(1, 8))
    def write(self, steps: int) -> None:
        for _ in range(steps):
            self.world.tier.writer.step(0)

    @rule(prefix=prefixes)
    def ask(self, prefix: tuple[int, ...]) -> None:
        request = self.world.request(self.world.tokens(*prefix))
        self.world.tier.prefetch(request)
        self.waiting[request.rid] = prefix
        self.seen.add(prefix)

    @precondition(lambda self: self.seen and not self.waiting)
    @rule(data=st.data(), flush=st.booleans())
    def fetch(self, data: st.DataObject, flush: bool) -> None:
        """A request comes alone and waits until its prefix is there."""
        prefix = data.draw(st.sampled_from(sorted(self.seen)))
        if flush:
            self.world.flush()
        self.ask(prefix)
        (rid,) = self.waiting
        for _ in range(2):
            while not self.world.tier.reader._asked.empty():
                self.read()
            prefetch = self.world.tier._prefetches.get(rid)
            if prefetch and prefetch.found and prefetch.slots is None and not prefetch.ended.is_set():
                self.world.tier._allocate(prefetch)
        assert self.world.tier.ready(rid)
        del self.waiting[rid]

    @rule()
    def read(self) -> None:
        reader = self.world.tier.reader
        if not reader._asked.empty():
            reader.step()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def schedule(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(sorted(self.waiting)))
        if self.world.tier.ready(rid):
            del self.waiting[rid]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(sorted(self.waiting)))
        self.world.tier.abandon(rid)
        del self.waiting[rid]

    @rule(pages=st.integers(1, PAGES))
    def evict(self, pages: int) -> None:
        self.world.tree.evict(EvictParams(num_tokens=pages * PAGE))

    @rule()
    def flush(self) -> None:
        self.world.flush()

    @rule()
    def crash(self) -> None:
        """Nothing but the folder is left."""
        self.begin()

    @rule(data=st.data(), share=st.floats(0, 0.99), zeros=st.booleans())
    def tear(self, data: st.DataObject, share: float, zeros: bool) -> None:
        """Some files keep their first bytes alone, or have zeros behind them."""
        files = self.world.files()
        for path in data.draw(st.sets(st.sampled_from(files))) if files else ():
            content = path.read_bytes()
            kept = content[: int(share * len(content))]
            path.write_bytes(kept + bytes(len(content) - len(kept)) * zeros)

    @rule(data=st.data())
    def swap(self, data: st.DataObject) -> None:
        """One page's file under another one's name."""
        files = self.world.files()
        if len(files) > 1:
            one, other = data.draw(st.permutations(files))[:2]
            os.replace(one, other)

    @invariant()
    def every_cached_page_is_right(self) -> None:
        for prefix in self.seen:
            self.world.check(self.world.tokens(*prefix))

    @invariant()
    def no_page_is_lost(self) -> None:
        world = self.world
        in_flight = sum(len(one.pages) for one in world.tier._prefetches.values())
        cached = world.tree.evictable_size() + world.tree.protected_size()
        assert cached + world.allocator.available_size() + in_flight * PAGE == PAGES * PAGE
        if not self.waiting:
            assert world.accounts_for_every_page()
        assert in_flight <= world.tier.most_pages

    @invariant()
    def queue_and_folder_are_bounded(self) -> None:
        assert len(self.world.tier.pending) <= self.world.tier.most_pages
        assert len(self.world.files()) <= self.room

    @invariant()
    def pages_are_accounted_for(self) -> None:
        counters, pending = self.world.counters, len(self.world.tier.pending)
        ends = ("pages_written", "pages_already_stored", "pages_dropped", "pages_freed_first", "write_errors")
        assert counters["pages_offered"] == pending + sum(counters[name] for name in ends)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for rid in list(self.waiting):
                self.world.tier.abandon(rid)
            self.world.table.settle()
            assert self.world.accounts_for_every_page()
            self.patch.undo()
            self.folder.cleanup()


TestStorage = StorageMachine.TestCase
TestStorage.settings = settings(max_examples=30, stateful_step_count=30)
