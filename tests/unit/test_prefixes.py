"""The prefixes that a server reports are what SGLang would find in its cache."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from rheo_sglang.config import RheoConfig
from rheo_sglang.importance.pages import PageImportance
from rheo_sglang.pools.allocator import RheoAllocator
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.tree.nodes import describe_tree
from unit import sglang_versions

PAGE, PAGES = 32, 300


class Cache:
    """A radix cache over rheo's pools."""

    def __init__(self) -> None:
        self.pool = RheoKVPool(PAGES * PAGE, PAGE, torch.float32, 1, 4, 1, "cpu", 4, RheoConfig())
        self.allocator = RheoAllocator(self.pool, need_sort=False)
        rows = ReqToTokenPool(size=2, max_context_len=PAGE, device="cpu", enable_memory_saver=False)
        self.tree = sglang_versions.build_tree(self.allocator, rows)

    def insert(self, tokens: list[int]) -> None:
        """A request with this prompt ends."""
        full = len(tokens) // PAGE * PAGE
        found, _ = sglang_versions.match(self.tree, tokens)
        computed = self.allocator.alloc(full - found.numel()) if full > found.numel() else found[:0]
        self.tree.insert(
            InsertParams(
                key=sglang_versions.radix_key(tokens[:full]),
                value=torch.cat([found, computed]),
                prev_prefix_len=found.numel(),
            )
        )

    def describe(self, most: int = 10) -> list[dict]:
        return describe_tree(self.tree, PageImportance(self.pool.table), PAGE, most)


def test_a_prefix_that_was_split_is_listed_whole() -> None:
    """A of 3,000 tokens, then one that leaves it after 1,600, then A again."""
    cache = Cache()
    a = list(range(3000))
    cache.insert(a)
    cache.insert(a[:1600] + [9999] * 200)
    cache.insert(a)
    found, _ = sglang_versions.match(cache.tree, a)
    longest, other = cache.describe()
    assert found.numel() == longest["tokens"] == 2976
    assert (longest["shared_tokens"], longest["nodes"]) == (1600, 2)
    assert (other["tokens"], other["shared_tokens"], other["nodes"]) == (1792, 1600, 2)
    assert longest["node"] != other["node"]


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_a_conversation_is_one_prefix(turns: int) -> None:
    cache = Cache()
    tokens = list(range(turns * 3 * PAGE))
    for turn in range(1, turns + 1):
        cache.insert(tokens[: turn * 3 * PAGE])
    (prefix,) = cache.describe()
    assert prefix["tokens"] == len(tokens)
    assert prefix["shared_tokens"] == 0


def test_requests_with_one_system_prompt_share_it() -> None:
    cache = Cache()
    system = list(range(5 * PAGE))
    for user in range(4):
        cache.insert(system + [1000 + user] * (PAGE * (user + 1)))
    prefixes = cache.describe()
    assert [entry["tokens"] for entry in prefixes] == [PAGE * count for count in (9, 8, 7, 6)]
    assert {entry["shared_tokens"] for entry in prefixes} == {5 * PAGE}
    assert cache.describe(most=2) == prefixes[:2]


def test_an_empty_tree_and_no_tree_have_no_prefixes() -> None:
    assert Cache().describe() == []
    assert describe_tree(SimpleNamespace(), PageImportance(Cache().pool.table), PAGE) == []
