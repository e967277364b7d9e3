"""Readers of the importance file in other caches keep their contracts, and evict by importance and recency."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rheo_sglang.importance import vllm as vllm_reader
from rheo_sglang.importance.file import ImportanceFile, Snapshot, write_snapshot
from rheo_sglang.importance.lmcache import ImportanceEvictionPolicy, lmcache_action
from rheo_sglang.importance.ranking import CONSIDERED, CONSIDERED_FOR_EACH, Ranking, block_hash
from rheo_sglang.importance.vllm import ImportanceCachePolicy


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def key_of(number: int) -> bytes:
    return number.to_bytes(8, "big") + bytes(24) + bytes(4)


def write_file(path: Path, importance: dict[int, float]) -> None:
    count = len(importance)
    columns: dict[str, Any] = {
        "block_hash": np.array(list(importance), np.int64),
        "importance": np.array(list(importance.values()), np.float32),
        "resident": np.zeros(count, np.float32),
        "position": np.zeros(count, np.int32),
        "idle_steps": np.zeros(count, np.int32),
    }
    write_snapshot(path, Snapshot(columns, 32, 0, 1e12))


class Block:
    def __init__(self, block_id: int) -> None:
        self.ref_cnt = -1
        self.block_id = block_id


class Chunk(NamedTuple):
    chunk_hash: bytes


numbers = st.integers(0, 11)


class CachePolicyMachine(RuleBasedStateMachine):
    """A dictionary says which blocks are cached and in which order they were used."""

    @initialize(known=st.dictionaries(numbers, st.floats(0, 1, width=32), max_size=12))
    def build(self, known: dict[int, float]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "file"
        if known:
            write_file(path, known)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(vllm_reader.FILE, str(path))
            self.policy = ImportanceCachePolicy(cache_capacity=12)
        self.known = known
        self.cached: dict[bytes, Block] = {}
        self.used: dict[bytes, int] = {}
        self.uses = 0

    def use(self, key: bytes) -> None:
        self.uses += 1
        self.used[key] = self.uses

    @rule(number=numbers, references=st.integers(-1, 1))
    def insert(self, number: int, references: int) -> None:
        key = key_of(number)
        if key in self.cached:
            return
        block = Block(number)
        block.ref_cnt = references
        self.policy.insert(key, block)
        self.cached[key] = block
        self.use(key)

    @rule(touched=st.lists(numbers, unique=True))
    def touch(self, touched: list[int]) -> None:
        keys = [key_of(number) for number in touched]
        self.policy.touch(iter(keys), None)
        for key in reversed(keys):
            if key in self.cached:
                self.use(key)

    @rule(number=numbers)
    def remove(self, number: int) -> None:
        key = key_of(number)
        if key in self.cached:
            self.policy.remove(key)
            del self.cached[key]
        else:
            with pytest.raises(KeyError):
                self.policy.remove(key)

    @rule(count=st.integers(0, 6), protected=st.sets(numbers))
    def evict(self, count: int, protected: set[int]) -> None:
        spared = {key_of(number) for number in protected}
        free = [key for key, block in self.cached.items() if block.ref_cnt == 0 and key not in spared]
        before = dict(self.policy.blocks)
        evicted = self.policy.evict(count, spared)
        if len(free) < count:
            assert evicted is None
            assert self.policy.blocks == before, "a refused eviction changed something"
            return
        assert evicted is not None
        told = [self.known[number] for key in free if (number := self.cached[key].block_id) in self.known]
        neutral = sum(told) / len(told) if told else 1.0

        def value(key: bytes) -> float:
            return self.known.get(self.cached[key].block_id, neutral) / (self.uses - self.used[key] + 1)

        by_age = sorted(free, key=lambda key: self.used[key])
        expected = sorted(by_age, key=value)[:count]
        assert [key for key, _ in evicted] == expected
        for key, block in evicted:
            assert block is self.cached.pop(key)

    @rule()
    def clear(self) -> None:
        self.policy.clear()
        self.cached.clear()

    @invariant()
    def what_is_cached_is_found(self) -> None:
        for number in range(12):
            assert self.policy.get(key_of(number)) is self.cached.get(key_of(number))
        assert len(self.policy.ranking) == len(self.cached)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestCachePolicy = CachePolicyMachine.TestCase
TestCachePolicy.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(used=st.lists(st.integers(0, 40), min_size=1), count=st.integers(0, 50))
def test_without_a_file_the_order_is_that_of_use(used: list[int], count: int) -> None:
    ranking: Ranking[int] = Ranking(ImportanceFile("/nonexistent/file"), lambda key: key)
    ranking.use(used)
    order = list(dict.fromkeys(reversed(used)))[::-1]
    assert ranking.least(count, lambda key: True) == order[:count]
    assert ranking.least(count, lambda key: key % 2 == 0) == [key for key in order if key % 2 == 0][:count]


def test_a_recently_used_block_outlives_an_equally_important_old_one_and_an_unimportant_one_does_not(
    tmp_path: Path,
) -> None:
    write_file(tmp_path / "file", {1: 0.5, 2: 0.5, 3: 0.01})
    ranking: Ranking[int] = Ranking(ImportanceFile(tmp_path / "file"), lambda key: key)
    ranking.use([1, 2, 3])
    assert ranking.least(3, lambda key: True) == [3, 1, 2]


def test_only_what_was_used_longest_ago_is_considered(tmp_path: Path) -> None:
    keys = list(range(4 * CONSIDERED))
    write_file(tmp_path / "file", {key: 0.0 if key == keys[-1] else 1.0 for key in keys})
    ranking: Ranking[int] = Ranking(ImportanceFile(tmp_path / "file"), lambda key: key)
    ranking.use(keys)
    assert ranking.least(1, lambda key: True) == [0]
    wanted = 4 * CONSIDERED // CONSIDERED_FOR_EACH
    assert ranking.least(wanted, lambda key: True)[0] == keys[-1]


def test_a_digest_becomes_the_number_that_events_announce() -> None:
    from sglang.srt.mem_cache.utils import hash_str_to_int64

    for first in (0x00, 0x7F, 0x80, 0xFF):
        digest = bytes([first, *range(1, 32)])
        assert block_hash(digest) == hash_str_to_int64(digest.hex())


def test_a_policy_without_a_file_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm_reader.FILE, raising=False)
    with pytest.raises(RuntimeError, match=vllm_reader.FILE):
        ImportanceCachePolicy(1)


@given(
    created=st.lists(numbers, unique=True, min_size=1),
    known=st.dictionaries(numbers, st.floats(0, 1, width=32)),
    ratio=st.floats(-1, 2),
    barred=st.sets(numbers),
)
@settings(deadline=None)
def test_an_eviction_action_has_the_share_that_was_asked_for_of_keys_that_may_go(
    created: list[int], known: dict[int, float], ratio: float, barred: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_file(Path(folder) / "file", known)
        policy = ImportanceEvictionPolicy(
            ImportanceFile(Path(folder) / "file"), action=lambda keys, destination: (keys, destination)
        )
        keys = [Chunk(key_of(number)) for number in created]
        policy.on_keys_created(keys)
        policy.on_keys_touched([Chunk(key_of(100))])
        policy.register_eviction_destination("first")
        policy.register_eviction_destination("second")
        spared = {Chunk(key_of(number)) for number in barred}
        actions = policy.get_eviction_actions(ratio, lambda key: key not in spared)
        eligible = [key for key in keys if key not in spared]
        share = min(max(ratio, 0.0), 1.0)
        wanted = min(max(int(len(keys) * share), 1 if share else 0), len(eligible))
        assert sum(len(chosen) for chosen, _ in actions) == wanted
        for chosen, destination in actions:
            assert destination == "first"
            assert set(chosen) <= set(eligible)
            assert len(policy.ranking) == len(keys), "keys are forgotten before they are removed"
            policy.on_keys_removed(chosen)
            assert not set(policy.get_eviction_actions(1.0)[0][0] if wanted < len(keys) else []) & set(chosen)


@pytest.mark.skipif(not installed("vllm"), reason="vLLM is not installed")
def test_vllm_loads_the_policy_by_its_module_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.kv_offload.base import ReqContext, make_offload_key
    from vllm.v1.kv_offload.cpu.policies import base
    from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory

    monkeypatch.setenv(vllm_reader.FILE, str(tmp_path / "file"))
    write_file(tmp_path / "file", {1: 0.9, 2: 0.1})
    loaded = CachePolicyFactory.get_cache_policy_cls(
        ImportanceCachePolicy.__name__, ImportanceCachePolicy.__module__
    )
    assert issubclass(loaded, base.CachePolicy)
    policy = loaded(cache_capacity=2)
    status = getattr(base, "ChunkStatus", None) or base.BlockStatus
    request = ReqContext("request")
    keys = [make_offload_key(key_of(number)[:-4], 0) for number in (1, 2)]
    for number, key in enumerate(keys):
        chunk = status(number)
        policy.insert(key, chunk, request)
        chunk.ref_cnt = 0
        policy.mark_evictable(key)
    policy.touch(keys, request)
    assert policy.evict(3, set()) is None
    assert [key for key, _ in policy.evict(1, set())] == [keys[1]]
    assert policy.get(keys[0]).is_ready


@pytest.mark.skipif(not installed("lmcache"), reason="LMCache is not installed")
def test_lmcache_takes_the_policy_behind_its_listeners(tmp_path: Path) -> None:
    from lmcache.v1.distributed.api import ObjectKey
    from lmcache.v1.distributed.eviction import EvictionPolicy, L1EvictionPolicy
    from lmcache.v1.distributed.internal_api import EvictionAction, EvictionDestination

    write_file(tmp_path / "file", {1: 0.9, 2: 0.1})
    policy = ImportanceEvictionPolicy(ImportanceFile(tmp_path / "file"), action=lmcache_action)
    assert isinstance(policy, EvictionPolicy)
    keys = [ObjectKey(key_of(number), "model", 0) for number in (1, 2)]
    L1EvictionPolicy(policy).on_l1_keys_write_finished(keys)
    (action,) = policy.get_eviction_actions(0.5, lambda key: True, None)
    assert action == EvictionAction(EvictionDestination.DISCARD, [keys[1]])
