"""The storage tier: what comes back is what was written, nothing else is served, and nobody waits or is harmed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rheo_kernels.types import KVScales
from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_sglang.config import RheoConfig
from rheo_sglang.storage import tier as tier_module
from rheo_sglang.storage.fingerprint import fingerprint, namespace
from rheo_sglang.storage.pending import PendingPages, Segment
from rheo_sglang.storage.record import RecordFormat
from rheo_sglang.storage.store import LIMIT_VARIABLES, UNFINISHED_AGE, open_backend, remove_unfinished
from rheo_sglang.storage.tier import PrefetchPolicy
from unit.storage_world import PAGE, WAITS, World, configuration, model
from unit.threads import await_that

MakeWorld = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    """Servers one after another on one folder."""
    return lambda **options: World(options.pop("folder", tmp_path), monkeypatch, **options)


def filled(make: MakeWorld, *kinds: int, **options: Any) -> list[int]:
    """Have a server write a prefix and end; returns its tokens."""
    world = make(**options)
    tokens = world.tokens(*kinds)
    world.cache(tokens)
    world.write_all()
    assert world.counters["pages_written"] == len(kinds)
    return tokens


def test_a_prefix_survives_a_restart_bit_by_bit(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2, 3, 4)
    world = make()
    assert world.cached(tokens) == 0
    assert world.fetch(tokens) == len(tokens)
    world.check(tokens)
    assert world.counters["pages_restored"] == world.counters["pages_read"] == 4
    assert world.counters["prefixes_found"] == world.counters["prefixes_asked_for"] == 1
    assert world.counters["bytes_read"] == 4 * world.tier.memory.format.record_bytes
    assert world.accounts_for_every_page()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("summary", ["bound", "mean", "subcentroids4"])
def test_every_dtype_and_summary_comes_back(make: MakeWorld, dtype: torch.dtype, summary: str) -> None:
    options: dict[str, Any] = {"dtype": dtype, "config": RheoConfig(summary=summary)}
    tokens = filled(make, 1, 2, **options)
    world = make(**options)
    assert world.fetch(tokens) == len(tokens)
    world.check(tokens)


def test_what_the_tree_has_is_not_read(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2, 3, 4)
    world = make()
    world.cache(tokens[: 2 * PAGE])
    assert world.fetch(tokens) == len(tokens)
    world.check(tokens)
    assert world.counters["pages_read"] == 2
    assert world.accounts_for_every_page()


def test_nodes_behind_restored_ones_continue_the_chain_of_hashes(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2)
    world = make()
    world.fetch(tokens)
    longer = [*tokens, *world.tokens(3)]
    world.cache(longer)
    world.write_all()
    assert world.counters["pages_written"] == 1
    again = make()
    assert again.fetch(longer) == len(longer)
    again.check(longer)


def test_restored_pages_are_not_written_again(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2)
    world = make()
    world.fetch(tokens)
    assert world.counters["pages_offered"] == 0
    world.flush()
    world.cache(tokens)
    world.write_all()
    assert world.counters["pages_already_stored"] == 2
    assert world.counters["pages_written"] == 0


def test_counters_after_a_flush_are_back_at_their_start(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2, 3)
    world = make()
    start = world.table.counters()
    world.fetch(tokens)
    noted = world.table.counters()
    assert noted["pages_summarised"] == noted["pages_important"] == 3
    world.table.settle()
    assert world.table.counters() == noted
    world.tree.reset()
    world.allocator.clear()
    assert world.table.counters() == start
    world.table.settle()
    assert world.table.counters() == start


def keys_of(world: World) -> set[str]:
    world.cache(world.tokens(1))
    (segment,) = world.tier.pending._segments
    return set(segment.keys)


OTHERS: dict[str, dict[str, Any]] = {
    "weights": {"weights": 1},
    "dtype": {"dtype": torch.bfloat16},
    "dtype of 8 bits": {"dtype": EIGHT_BITS},
    "page size": {"page_size": 32},
    "summary": {"config": RheoConfig(summary="bound")},
}


@pytest.mark.parametrize("difference", OTHERS)
def test_what_makes_a_page_wrong_changes_its_key(make: MakeWorld, difference: str) -> None:
    tokens = filled(make, 1, 2)
    assert keys_of(make()) == keys_of(make())
    assert not keys_of(make()) & keys_of(make(**OTHERS[difference]))
    world = make(**OTHERS[difference])
    assert world.fetch(tokens) == 0
    assert world.counters["prefixes_found"] == 0


def test_the_fingerprint_depends_on_the_models_configuration_and_weights(make: MakeWorld) -> None:
    pool = make().pool
    one = fingerprint(pool, model(), configuration())
    assert one == fingerprint(
        pool, model(), configuration(_name_or_path="elsewhere", transformers_version="5")
    )
    assert one != fingerprint(pool, model(), configuration(rope_theta=5e5))
    other = model()
    with torch.no_grad():
        other.weight[3, 3] += 1
    assert one != fingerprint(pool, other, configuration())
    assert (
        len({namespace(one, *extra) for extra in ((None, None), ("a", None), (None, "a"), ("a", "a"))}) == 4
    )


def test_the_fingerprint_depends_on_the_scales_of_eight_bits(make: MakeWorld) -> None:
    pool = make(dtype=EIGHT_BITS).pool
    digests = set()
    for scales in (KVScales(), KVScales(0.5, 1.0), KVScales(1.0, 0.5)):
        pool.scales = [scales] * pool.layer_num
        digests.add(fingerprint(pool, model(), configuration()))
    assert len(digests) == 3


def test_requests_that_a_key_keeps_apart_have_pages_of_their_own(make: MakeWorld) -> None:
    world = make()
    tokens = world.tokens(1, 2)
    world.cache(tokens, "tenant")
    world.write_all()
    again = make()
    assert again.fetch(tokens) == 0
    assert again.fetch(tokens, "other") == 0
    assert again.fetch(tokens, "tenant") == len(tokens)


def damage_truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def damage_empty(path: Path) -> None:
    os.truncate(path, 0)


def damage_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def damage_tail(path: Path) -> None:
    """What a file system may leave of a file whose last blocks never reached the disk."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def damage_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


DAMAGES = [damage_truncated, damage_empty, damage_zeros, damage_tail, damage_one_bit]


@pytest.mark.parametrize("damage", DAMAGES, ids=[damage.__name__ for damage in DAMAGES])
def test_a_torn_page_is_never_served_and_is_written_again(
    make: MakeWorld, damage: Callable[[Path], None]
) -> None:
    world = make()
    tokens = world.tokens(1, 2, 3, 4)
    world.cache(tokens)
    names: list[Path] = []
    world.write_all()
    for key in keys_in_order(make(), tokens):
        names.append(next(world.folder.glob(f"{key}*.bin")))
    damage(names[2])
    again = make()
    assert again.fetch(tokens) == 2 * PAGE, "the pages in front of it are served"
    again.check(tokens)
    assert again.counters["pages_corrupt"] + again.counters["read_errors"] == 1
    assert again.accounts_for_every_page()
    again.cache(tokens)
    again.write_all()
    last = make()
    assert last.fetch(tokens) == len(tokens)
    last.check(tokens)


def keys_in_order(world: World, tokens: list[int]) -> list[str]:
    world.cache(tokens)
    (segment,) = world.tier.pending._segments
    return segment.keys


def test_a_page_under_another_pages_name_is_not_served(make: MakeWorld) -> None:
    world = make()
    one, other = world.tokens(1), world.tokens(2)
    paths = []
    for tokens in (one, other):
        before = set(world.files())
        world.cache(tokens)
        world.write_all()
        paths += set(world.files()) - before
    paths[0].write_bytes(paths[1].read_bytes())
    again = make()
    assert again.fetch(one) == 0
    assert again.counters["pages_corrupt"] == 1
    assert again.fetch(other) == PAGE


def test_a_record_holds_its_parts_and_nothing_but_them(rng: torch.Generator) -> None:
    layout = RecordFormat(layers=2, kv_heads=3, summary_bytes=5, block_bytes=32)
    record = np.zeros(layout.record_bytes, np.uint8)
    parts = [layout.importance(record), layout.summaries(record), layout.blocks(record)]
    for number, part in enumerate(parts, 1):
        part[:] = number
    assert [set(part.flatten().tolist()) for part in parts] == [{1}, {2}, {3}]
    layout.seal(record, "key")
    assert layout.holds(record, "key")
    assert not layout.holds(record, "other")
    for position in range(layout.record_bytes):
        record[position] ^= 0x40
        assert not layout.holds(record, "key"), position
        record[position] ^= 0x40
    assert layout.holds(record, "key")


class Failing:
    """A backend that fails in one way or another."""

    def __init__(self, backend: Any, error: Exception | None, methods: tuple[str, ...]) -> None:
        self.backend, self.error, self.methods = backend, error, methods

    def __getattr__(self, name: str) -> Any:
        if name not in self.methods:
            return getattr(self.backend, name)

        def fail(*args: Any, **kwargs: Any) -> Any:
            if self.error is not None:
                raise self.error
            return None

        return fail


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("gone"), None])
def test_a_failing_backend_harms_nobody(make: MakeWorld, error: Exception | None) -> None:
    tokens = filled(make, 1, 2, 3)
    world = make()
    for methods in (("exists", "batch_exists"), ("batch_get",), ("set",), ("exists", "batch_exists", "set")):
        world.tier.store.backend = Failing(world.backend, error, methods)
        assert world.fetch([*tokens, *world.tokens(7)]) in (0, len(tokens))
        world.cache(world.tokens(5, *range(len(methods))))
        world.write_all()
        assert world.accounts_for_every_page()
        world.check(tokens)
        world.flush()
    assert world.counters["write_errors"] > 0
    world.tier.store.backend = world.backend
    assert world.fetch(tokens) == len(tokens)
    world.check(tokens)


def test_a_page_that_is_freed_before_it_is_written_is_not_written(make: MakeWorld) -> None:
    world = make()
    world.cache(world.tokens(1, 2))
    world.flush()
    world.cache(world.tokens(3, 4))
    world.write_all()
    assert world.counters["pages_freed_first"] == 2
    assert world.counters["pages_written"] == 2
    assert make().fetch(world.tokens(1, 2)) == 0


def test_a_page_that_is_freed_while_it_is_read_is_not_written(make: MakeWorld) -> None:
    world = make()
    world.cache(world.tokens(1))
    memory = world.tier.memory
    read = memory.read

    def freed_midway(page: int, record: Any) -> None:
        read(page, record)
        world.flush()
        world.pool.host[:, page] = 7

    memory.read = freed_midway  # type: ignore[method-assign]
    world.write_all()
    assert world.counters["pages_freed_first"] == 1
    assert world.files() == []


def test_a_page_whose_last_tokens_are_in_frames_waits_until_it_is_saved(
    make: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make()
    tokens = world.tokens(1, 2)
    world.cache(tokens)
    page = int(world.tier.pending._segments[0].pages[1])
    world.table.unsaved[1, page] = True
    world.write_all()
    assert world.counters["pages_written"] == 1
    world.table.unsaved[1, page] = False
    world.tier.writer.step(0)
    assert world.counters["pages_written"] == 1, "it is left alone for a while"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1)
    world.tier.writer.step(0)
    assert world.counters["pages_written"] == 2
    assert make().fetch(tokens) == len(tokens)


def segment(pages: list[int]) -> Segment:
    return Segment([f"page {page}" for page in pages], torch.tensor(pages), torch.zeros(len(pages)))


def test_the_most_important_prefix_is_written_first_from_its_beginning() -> None:
    pending = PendingPages(100)
    for first in (10, 20, 30):
        pending.offer(segment(list(range(first, first + 5))))
    worth = {1: 0.2, 2: 0.9, 3: 0.5}
    order: list[int] = []
    while len(pending):
        taken = pending.take(2, lambda pages: worth[int(pages[0]) // 10])
        assert taken is not None
        order += taken.pages.tolist()
    assert order == [*range(20, 25), *range(30, 35), *range(10, 15)]


def test_a_full_queue_drops_the_end_of_the_least_important_prefix() -> None:
    pending = PendingPages(6)
    assert pending.offer(segment([10, 11, 12])) == 0
    taken = pending.take(1, lambda pages: 0.1)
    assert taken is not None and taken.pages.tolist() == [10]
    assert pending.offer(segment([20, 21, 22, 23, 24])) == 1
    assert len(pending) == 6
    left = [one.pages.tolist() for one in pending._segments]
    assert left == [[11], [20, 21, 22, 23, 24]]
    assert pending.offer(segment([30, 31, 32, 33, 34, 35, 36])) == 7
    assert [one.pages.tolist() for one in pending._segments] == [[20, 21, 22, 23, 24], [30]]
    assert pending.clear() == 6
    assert pending.take(1, lambda pages: 1.0, timeout=0) is None


def test_offering_does_not_wait_for_a_backend_that_hangs(make: MakeWorld) -> None:
    world = make()
    hangs, free = threading.Event(), threading.Event()

    class Hanging:
        def __getattr__(self, name: str) -> Any:
            return getattr(world.backend, name)

        def set(self, key: str, value: Any) -> bool:
            hangs.set()
            return free.wait(60) and world.backend.set(key, value)

    world.tier.store.backend = Hanging()
    world.tier.writer.start(world.tier._turn_off)
    world.cache(world.tokens(1))
    assert hangs.wait(60)
    start = time.monotonic()
    for kind in range(2, 40):
        world.cache(world.tokens(kind))
    assert time.monotonic() - start < 30
    assert world.counters["pages_dropped"] > 0
    assert len(world.tier.pending) <= world.tier.pending.limit == world.tier.most_pages
    free.set()
    counters = world.counters

    def everything_is_accounted_for() -> bool:
        written = counters["pages_written"] + counters["pages_freed_first"]
        return written == counters["pages_offered"] - counters["pages_dropped"]

    await_that(everything_is_accounted_for)


def test_the_folder_is_bounded_and_keeps_what_was_used_last(make: MakeWorld) -> None:
    size = make().tier.memory.format.record_bytes
    world = make(settings={"max_size": 6 * size})
    used = world.tokens(1, 2)
    world.cache(used)
    world.write_all()
    for kind in range(10, 20):
        world.flush()
        assert world.fetch(used) == len(used)
        world.cache(world.tokens(kind))
        world.write_all()
        assert sum(path.stat().st_size for path in world.files()) <= 6 * size
    assert make().fetch(used) == len(used)


def test_a_folder_without_a_limit_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: MakeWorld
) -> None:
    make()
    for name in LIMIT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    backend = open_backend("file", {}, "tiny")
    state = os.statvfs(tmp_path)
    assert 0 < backend._evictor.max_size_bytes <= state.f_bavail * state.f_frsize
    assert open_backend("file", {"max_size": 12345}, "tiny")._evictor.max_size_bytes == 12345


def test_what_a_dead_server_left_unfinished_is_removed(tmp_path: Path) -> None:
    names = {".abc.tmp": True, "k.bin.tmp.1.2.abc": True, "k.bin": False, "other.txt": False}
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, times=(0, time.time() - 2 * UNFINISHED_AGE))
    (tmp_path / ".new.tmp").write_bytes(b"x")
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".new.tmp", "k.bin", "other.txt"}


def test_best_effort_takes_what_is_there(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2, 3)
    world = make(policy=PrefetchPolicy("best_effort", threshold=PAGE))
    request = world.request(tokens)
    world.tier.prefetch(request)
    assert world.tier.ready(request.rid)
    assert world.cached(tokens) == 0
    request = world.request(tokens)
    world.tier.prefetch(request)
    world.tier.reader.step()
    world.tier.reader.step()
    world.tier._allocate(world.tier._prefetches[request.rid])
    world.tier.reader.step()
    assert world.tier.ready(request.rid)
    assert world.cached(tokens) == len(tokens)
    assert world.counters["prefetches_cut"] == 1
    assert world.accounts_for_every_page()


def test_a_timeout_grows_with_the_prefix_and_ends_the_wait(
    make: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = filled(make, 1, 2, 3, 4)
    world = make(policy=PrefetchPolicy("timeout", PAGE, base=1.0, per_page=0.5))
    request = world.request(tokens)
    world.tier.prefetch(request)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2.5)
    assert not world.tier.ready(request.rid)
    monkeypatch.setattr(time, "monotonic", lambda: now + 3.5)
    assert world.tier.ready(request.rid)
    assert world.counters["prefetches_cut"] == 1
    assert world.accounts_for_every_page()


def test_a_read_that_hangs_is_given_up_whatever_the_policy(
    make: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = filled(make, 1, 2)
    world = make(policy=WAITS)
    request = world.request(tokens)
    world.tier.prefetch(request)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + tier_module.STALLED_SECONDS - 1)
    assert not world.tier.ready(request.rid)
    monkeypatch.setattr(time, "monotonic", lambda: now + tier_module.STALLED_SECONDS + 1)
    assert world.tier.ready(request.rid)


def test_nobody_writes_to_the_pages_of_a_request_that_has_gone(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2, 3)
    world = make()
    request = world.request(tokens)
    world.tier.prefetch(request)
    world.tier.reader.step()
    assert not world.tier.ready(request.rid)
    pages = world.tier._prefetches[request.rid].pages
    assert len(pages) == 3
    world.tier.abandon(request.rid)
    world.pool.host[:, pages] = 5
    world.tier.reader.step()
    assert (world.pool.host[:, pages] == 5).all()
    assert world.cached(tokens) == 0
    assert world.accounts_for_every_page()
    world.tier.abandon("unknown")


def test_an_idle_scheduler_waits_a_moment_and_forgets_who_left_unnoticed(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2)
    world = make()
    world.tier.rest(set())
    requests = [world.request(tokens), world.request([*tokens, *world.tokens(3)])]
    for request in requests:
        world.tier.prefetch(request)
        world.tier.reader.step()
        assert not world.tier.ready(request.rid)
    world.tier.rest({requests[1].rid})
    assert list(world.tier._prefetches) == [requests[1].rid]
    world.wait_for(requests[1].rid)
    world.check(tokens)
    assert world.cached(tokens) == len(tokens)
    assert world.accounts_for_every_page()


def test_a_flush_ends_what_is_being_read(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2)
    world = make()
    request = world.request(tokens)
    world.tier.prefetch(request)
    world.tier.reader.step()
    assert not world.tier.ready(request.rid)
    world.flush()
    world.tier.reader.step()
    assert world.tier.ready(request.rid)
    assert world.accounts_for_every_page()
    assert world.cached(tokens) == 0


def test_a_prefix_that_another_request_computed_meanwhile_is_kept_once(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2, 3, 4)
    world = make()
    request = world.request(tokens)
    world.tier.prefetch(request)
    world.tier.reader.step()
    assert not world.tier.ready(request.rid)
    world.cache(tokens[: 3 * PAGE])
    world.wait_for(request.rid)
    assert world.cached(tokens) == len(tokens)
    world.check(tokens)
    assert world.accounts_for_every_page()


def test_a_prefix_in_the_tree_is_not_evicted_while_what_is_behind_it_is_read(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2, 3, 4)
    world = make(pages=8)
    world.cache(tokens[: 2 * PAGE])
    request = world.request(tokens)
    world.tier.prefetch(request)
    world.cache(world.tokens(*range(50, 54)))
    world.cache(world.tokens(*range(60, 64)))
    assert world.cached(tokens) == 2 * PAGE
    world.wait_for(request.rid)
    assert world.cached(tokens) == len(tokens)
    world.check(tokens)


def test_where_there_is_no_room_the_prefix_is_computed(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2, 3)
    world = make()
    held = world.allocator.alloc(world.allocator.available_size())
    assert world.fetch(tokens) == 0
    assert world.counters["prefetches_declined"] == 1
    world.allocator.free(held)
    assert world.accounts_for_every_page()


def test_no_more_than_a_share_of_the_pool_is_read_into_at_a_time(make: MakeWorld) -> None:
    kinds = range(1, 13)
    tokens = filled(make, *kinds)
    world = make(pages=15)
    assert world.tier.most_pages == 8
    assert world.fetch(tokens) == 8 * PAGE
    world.check(tokens)


def test_short_prompts_and_prompts_of_their_own_kind_are_not_asked_for(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2)
    world = make(policy=PrefetchPolicy("wait_complete", threshold=3 * PAGE))
    assert world.fetch(tokens) == 0
    assert world.counters["prefixes_asked_for"] == 0
    world = make()
    for change in ({"session": object()}, {"to_finish": object()}, {"finished": lambda: True}):
        request = world.request(tokens)
        vars(request).update(change)
        world.tier.prefetch(request)
        assert world.tier.ready(request.rid)
    assert world.counters["prefixes_asked_for"] == 0


def test_pages_of_other_weights_have_other_keys(make: MakeWorld) -> None:
    tokens = filled(make, 1, 2)
    world = make()
    assert world.fetch(tokens) == len(tokens)
    world.flush()
    with torch.no_grad():
        world.tier.model.weight += 1
    world.tier.note_weights()
    assert world.fetch(tokens) == 0
    world.cache(tokens)
    world.write_all()
    assert world.counters["pages_written"] == 2
    with torch.no_grad():
        world.tier.model.weight += 1
    world.tier.note_weights()
    assert world.tier.off is not None, "prefixes of the old weights are still cached"
    world.cache([*tokens, *world.tokens(3)])
    world.write_all()
    assert world.counters["pages_written"] == 2
    assert world.tier.report()["off"] == world.tier.off


def test_a_backend_may_answer_with_tensors_of_its_own(make: MakeWorld) -> None:
    """As those that ``dynamic`` loads may."""
    kept: dict[str, torch.Tensor] = {}

    class Dictionary:
        def exists(self, key: str) -> bool:
            return key in kept

        def batch_exists(self, keys: list[str]) -> int:
            return next((place for place, key in enumerate(keys) if key not in kept), len(keys))

        def set(self, key: str, value: torch.Tensor) -> bool:
            kept[key] = value.clone()
            return True

        def batch_get(self, keys: list[str], targets: list[torch.Tensor]) -> list[torch.Tensor | None]:
            return [kept.get(key) for key in keys]

    tokens = filled(make, 1, 2, 3, backend=Dictionary())
    world = make(backend=Dictionary())
    assert world.fetch(tokens) == len(tokens)
    world.check(tokens)
    key = keys_in_order(make(backend=Dictionary()), tokens)[1]
    kept[key] = kept[key][:-1]
    world = make(backend=Dictionary())
    assert world.fetch(tokens) == PAGE
