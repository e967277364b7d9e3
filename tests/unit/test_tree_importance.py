"""Importance of cached blocks: what the scheduler noted, keys that keep requests apart, requests, and the export."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from rheo_sglang.config import RheoConfig
from rheo_sglang.importance.file import read_snapshot
from rheo_sglang.importance.interface import BlockImportance, CachedImportance, ImportanceInput
from rheo_sglang.pools.allocator import RheoAllocator
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.tree.export import ImportanceExport
from rheo_sglang.tree.importance import TreeImportance
from rheo_sglang.tree.nodes import slot_pages, walk
from unit import sglang_versions

PAGE, PAGES, LAYERS, HEADS = 16, 64, 2, 3


class Cache:
    """A radix cache over rheo's pools; every page has its own importance in every row."""

    def __init__(self, kv_events: bool = False) -> None:
        self.pool = RheoKVPool(PAGES * PAGE, PAGE, torch.float32, HEADS, 4, LAYERS, "cpu", 4, RheoConfig())
        self.table = self.pool.table
        self.allocator = RheoAllocator(self.pool, need_sort=False)
        self.rows = ReqToTokenPool(
            size=2, max_context_len=PAGES * PAGE, device="cpu", enable_memory_saver=False
        )
        self.tree = sglang_versions.build_tree(self.allocator, self.rows, kv_events)
        self.importance = TreeImportance(self.table, self.tree, PAGE)
        self.table.settle()

    def allocate(self, count: int) -> torch.Tensor:
        slots = self.allocator.alloc(count * PAGE)
        pages = slot_pages(slots, PAGE)
        self.table.settle()
        self.table.policy.worth[:, :, pages] = torch.rand(LAYERS, HEADS, count)
        return slots

    def insert(self, tokens: list[int], extra_key: str | None = None) -> torch.Tensor:
        slots = self.allocate(len(tokens) // PAGE)
        self.tree.insert(InsertParams(key=sglang_versions.radix_key(tokens, extra_key), value=slots))
        return slots


def test_the_parts_have_the_interface() -> None:
    cache = Cache()
    assert isinstance(cache.importance, BlockImportance)
    assert isinstance(cache.importance, CachedImportance)
    assert isinstance(cache.table.policy, ImportanceInput)


def test_a_freed_page_has_none_before_the_next_pass_and_so_has_one_handed_out_again() -> None:
    cache = Cache()
    slots = cache.allocate(PAGES)
    page = int(slots[0]) // PAGE
    assert cache.importance.get_importance(page) > 0
    cache.allocator.free(slots[:PAGE])
    assert cache.importance.get_importance(page) == 0.0
    again = cache.allocator.alloc(PAGE)
    assert int(again[0]) // PAGE == page
    assert cache.importance.get_importance(page) == 0.0
    assert float(cache.table.policy.worth[:, :, page].min()) > 0, (
        "the release is carried out: nothing is shown"
    )
    others = slot_pages(slots[PAGE:], PAGE)
    assert (cache.importance.of_pages(others) > 0).all()


def test_a_flush_leaves_no_importance_and_no_blocks() -> None:
    cache = Cache()
    slots = cache.insert(list(range(4 * PAGE)))
    hashes = cache.importance.blocks().hashes.tolist()
    cache.tree.reset()
    cache.allocator.clear()
    assert not cache.importance.of_pages(slot_pages(slots, PAGE)).any()
    assert cache.importance.of_blocks(hashes).isnan().all()
    assert len(cache.importance.blocks().hashes) == 0


def test_an_overlap_gives_survivors_the_larger_importance_with_the_next_pass() -> None:
    cache = Cache()
    tokens = list(range(3 * PAGE))
    kept = slot_pages(cache.insert(tokens), PAGE)
    first = cache.importance.of_rows(kept)
    duplicates = cache.allocate(3)
    second = cache.importance.of_rows(slot_pages(duplicates, PAGE))
    cache.tree.insert(InsertParams(key=sglang_versions.radix_key(tokens), value=duplicates))
    assert torch.equal(cache.importance.of_rows(kept), first)
    cache.table.settle()
    assert torch.equal(cache.importance.of_rows(kept), torch.maximum(first, second))
    assert not cache.importance.of_pages(slot_pages(duplicates, PAGE)).any()


@pytest.mark.parametrize("page", [-1, PAGES + 1])
def test_a_number_that_names_no_page_is_refused(page: int) -> None:
    with pytest.raises(IndexError, match=rf"page {page} is not one; allowed: 0 to {PAGES}"):
        Cache().importance.get_importance(page)


def test_requests_that_a_key_keeps_apart_have_the_hashes_that_events_announce() -> None:
    cache = Cache(kv_events=True)
    cache.tree.take_events()
    tokens = list(range(4 * PAGE))
    cache.insert(tokens)
    cache.insert(tokens, "tenant")
    cache.insert([*tokens[: 2 * PAGE], *range(900, 900 + PAGE)], "tenant")
    announced = [block for event in cache.tree.take_events() for block in event.block_hashes]
    assert set(cache.importance.blocks().hashes.tolist()) == set(announced)


def test_a_running_requests_importance_is_the_mean_of_its_pages() -> None:
    cache = Cache()
    slots = cache.allocate(3)
    cache.rows.req_to_token[1, : 2 * PAGE + 5] = slots[: 2 * PAGE + 5].int()
    request = SimpleNamespace(req_pool_idx=1, kv_committed_len=2 * PAGE + 5)
    rows = cache.table.policy.worth[:, :, slot_pages(slots, PAGE)]
    torch.testing.assert_close(cache.importance.of_request(request), rows.mean())


def test_a_cache_without_a_tree_has_no_blocks() -> None:
    importance = TreeImportance(Cache().table, SimpleNamespace(), PAGE)
    assert importance.blocks().hashes.shape == (0,)
    assert importance.of_blocks([1]).isnan().all()


def test_the_export_writes_what_the_interface_says_when_something_changed(tmp_path: Path) -> None:
    cache, now = Cache(), [0.0]
    path = tmp_path / "importance"
    export = ImportanceExport(cache.importance, str(path), 10.0, clock=lambda: now[0])
    cache.insert(list(range(4 * PAGE)))
    cache.insert([*range(2 * PAGE), *range(500, 500 + 3 * PAGE)])
    cache.table.frame_of[0, 1, :] = 0
    export.poll()
    export.flush()
    content = read_snapshot(path)
    assert content is not None
    blocks = cache.importance.blocks()
    columns = content.columns
    assert columns["block_hash"].tolist() == blocks.hashes.tolist()
    assert columns["position"].tolist() == blocks.positions.tolist()
    assert torch.equal(torch.from_numpy(columns["importance"]), cache.importance.of_pages(blocks.pages))
    assert columns["resident"].tolist() == [pytest.approx(1 / (LAYERS * HEADS))] * 7
    assert content.page_size == PAGE

    export.poll()
    now[0] = 10.0
    export.poll()
    export.flush()
    assert export.written == 1, "a file is written that says the same"
    cache.tree.evict(EvictParams(num_tokens=3 * PAGE))
    export.poll()
    assert export.written == 1, "a file is written before it is due"
    now[0] = 20.0
    export.poll()
    export.flush()
    assert export.written == 2
    left = read_snapshot(path)
    assert left is not None
    assert len(left.columns["block_hash"]) == sum(
        len(node.key) // PAGE for node in walk(cache.tree.tree_core.root_node)
    )


def test_a_file_that_cannot_be_written_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, now = Cache(), [0.0]
    folder = tmp_path / "gone"
    export = ImportanceExport(cache.importance, str(folder / "file"), 1.0, clock=lambda: now[0])
    cache.insert(list(range(2 * PAGE)))
    export.poll()
    export.flush()
    assert export.written == 0
    assert "importance_file" in caplog.text
    folder.mkdir()
    cache.insert(list(range(700, 700 + PAGE)))
    now[0] = 1.0
    export.poll()
    export.flush()
    assert export.written == 1
