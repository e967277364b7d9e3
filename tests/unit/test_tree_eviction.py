"""Eviction of the radix tree by importance: the order, one read a round, and ranks that stay equal."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from rheo_sglang import state
from rheo_sglang.config import RheoConfig
from rheo_sglang.importance.file import read_snapshot
from rheo_sglang.pools.allocator import RheoAllocator
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.tree.eviction import REFRESH_STEPS, ImportanceOrder
from rheo_sglang.tree.nodes import slot_pages
from unit import sglang_versions

PAGE, PAGES = 16, 64


class Cache:
    """A radix cache whose prefixes are runs of one token, one page a token; a prefix may go on from another."""

    def __init__(self, group: Any = None, **settings: Any) -> None:
        config = RheoConfig(tree_eviction="importance", **settings)
        self.pool = RheoKVPool(PAGES * PAGE, PAGE, torch.float32, 2, 4, 2, "cpu", 4, config)
        self.allocator = RheoAllocator(self.pool, need_sort=False)
        self.rows = ReqToTokenPool(size=2, max_context_len=PAGE, device="cpu", enable_memory_saver=False)
        self.tree = sglang_versions.build_tree(self.allocator, self.rows, group=group)
        self.pool.table.settle()

    @property
    def order(self) -> ImportanceOrder:
        (component,) = self.tree.tree_core.components
        return component.order

    def insert(self, prefix: tuple[int, ...], importance: float) -> None:
        """Cache a prefix; its new pages have this importance."""
        tokens = [kind for kind in prefix for _ in range(PAGE)]
        found, _ = sglang_versions.match(self.tree, tokens)
        slots = self.allocator.alloc(len(tokens) - found.numel())
        self.pool.table.settle()
        self.pool.table.policy.worth[:, :, slot_pages(slots, PAGE)] = importance
        key = sglang_versions.radix_key(tokens)
        self.tree.insert(
            InsertParams(key=key, value=torch.cat([found, slots]), prev_prefix_len=found.numel())
        )

    def evict(self, pages: int) -> None:
        self.tree.evict(EvictParams(num_tokens=pages * PAGE))

    def cached(self, *prefix: int) -> int:
        """Pages of a prefix in nodes that are whole part of it; does not count as a use."""
        node, count = self.tree.tree_core.root_node, 0
        while True:
            for child in node.children.values():
                kinds = tuple(list(child.key.token_ids)[::PAGE])
                if prefix[count : count + len(kinds)] == kinds:
                    node, count = child, count + len(kinds)
                    break
            else:
                return count


def test_of_prefixes_used_alike_the_less_important_goes() -> None:
    cache = Cache()
    cache.insert((1, 1, 1), 0.9)
    cache.insert((2, 2, 2), 0.01)
    cache.insert((3, 3, 3), 0.9)
    cache.evict(3)
    assert (cache.cached(1, 1, 1), cache.cached(2, 2, 2), cache.cached(3, 3, 3)) == (3, 0, 3)


def test_of_prefixes_equally_important_the_one_used_longest_ago_goes_however_large() -> None:
    cache = Cache()
    cache.insert((1, 1, 1, 1, 1, 1), 0.5)
    cache.insert((2,), 0.5)
    cache.insert((3, 3, 3), 0.5)
    cache.evict(1)
    assert (cache.cached(1, 1, 1, 1, 1, 1), cache.cached(2), cache.cached(3, 3, 3)) == (0, 1, 3)


def test_a_prefix_that_nobody_uses_any_more_goes_however_important() -> None:
    cache = Cache()
    cache.insert((1, 1), 1.0)
    cache.insert((2, 2), 0.2)
    for _ in range(50):
        sglang_versions.match(cache.tree, [2] * PAGE * 2)
    cache.evict(2)
    assert (cache.cached(1, 1), cache.cached(2, 2)) == (0, 2)


def test_a_parent_outlives_its_children_and_goes_when_its_turn_comes() -> None:
    cache = Cache()
    cache.insert((1, 1, 2, 2), 0.0)
    cache.insert((1, 1, 3, 3), 0.9)
    cache.insert((4,), 0.9)
    cache.evict(2)
    assert (cache.cached(1, 1, 2, 2), cache.cached(1, 1, 3, 3), cache.cached(4)) == (2, 4, 1)
    cache.evict(5)
    assert cache.tree.evictable_size() == 0


def test_a_round_reads_once_and_only_for_new_nodes_or_after_a_while() -> None:
    cache = Cache()
    for kind in range(8):
        cache.insert((kind, kind), 0.5)
    cache.evict(6)
    assert cache.order.reads == 1
    cache.evict(2)
    assert cache.order.reads == 1
    cache.insert((100,), 0.5)
    cache.evict(1)
    assert cache.order.reads == 2
    for _ in range(REFRESH_STEPS):
        cache.pool.table.begin_step()
    cache.evict(1)
    assert cache.order.reads == 3


def test_without_the_setting_sglang_orders() -> None:
    pool = RheoKVPool(PAGES * PAGE, PAGE, torch.float32, 2, 4, 2, "cpu", 4, RheoConfig())
    rows = ReqToTokenPool(size=2, max_context_len=PAGE, device="cpu", enable_memory_saver=False)
    tree = sglang_versions.build_tree(RheoAllocator(pool, need_sort=False), rows)
    (component,) = tree.tree_core.components
    assert component.order is None


def run_rank(rank: int, store: str, answers: Any) -> None:
    """One rank of two: its KV heads find other prefixes important than the other's do.

    It runs alone in its process: OpenMP's threads do not survive a fork, and whoever waits for them waits for ever.
    """
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    cache = Cache(torch.distributed.group.WORLD)
    random = torch.Generator().manual_seed(rank)
    seen = []
    for kind in range(24):
        cache.insert((kind % 3, 10 + kind), float(torch.rand((), generator=random)))
        if kind % 4 == 3:
            cache.evict(2)
            seen.append([cache.cached(other % 3, 10 + other) for other in range(24)])
    answers.put((rank, seen, cache.order.reads))
    torch.distributed.destroy_process_group()


def test_ranks_that_disagree_about_importance_evict_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [
        context.Process(target=run_rank, args=(rank, str(tmp_path / "store"), answers)) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    (_, first, reads), (_, second, other_reads) = sorted(answers.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(30)
    assert first == second
    assert reads == other_reads > 0


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        ({"dp_rank": None, "attn_dp_size": 1}, "file"),
        ({"dp_rank": 2, "attn_dp_size": 1}, "file.2"),
        ({"dp_rank": None, "attn_dp_size": 4, "attn_dp_rank": 3}, "file.3"),
        ({"dp_rank": None, "attn_dp_size": 1, "attn_tp_rank": 1}, None),
        ({"dp_rank": None, "attn_dp_size": 1, "pp_rank": 1}, None),
    ],
)
def test_the_first_rank_of_every_replica_writes_a_file(
    tmp_path: Path, ranks: dict[str, Any], name: str | None
) -> None:
    cache = Cache(importance_file=str(tmp_path / "file"))
    scheduler = SimpleNamespace(
        token_to_kv_pool_allocator=cache.allocator,
        tree_cache=cache.tree,
        ps=SimpleNamespace(**{"pp_rank": 0, "attn_tp_rank": 0, **ranks}),
    )
    export = state.exporter(scheduler)
    assert state.exporter(scheduler) is export
    if name is None:
        assert export is None
        return
    assert export is not None
    cache.insert((1, 1), 0.5)
    export.poll()
    export.flush()
    content = read_snapshot(tmp_path / name)
    assert content is not None
    assert content.columns["importance"].tolist() == [0.5, 0.5]
