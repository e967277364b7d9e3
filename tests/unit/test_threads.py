"""Threads beside the scheduler: whatever ends one, its feature goes off with one line and nobody waits for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rheo_sglang.importance.file import read_snapshot
from rheo_sglang.storage import store
from rheo_sglang.threads import in_words, start_thread
from rheo_sglang.traces import Trace
from rheo_sglang.traces.events import Step
from rheo_sglang.tree.export import ImportanceExport
from unit.storage_world import PAGE, World
from unit.test_trace_files import run_step, step, tracer_of
from unit.test_tree_importance import PAGE as TREE_PAGE
from unit.test_tree_importance import Cache
from unit.threads import await_end, await_that, full_disk, kill

ERRORS = [RuntimeError("out of\n  memory"), MemoryError(), SystemExit(3), KeyboardInterrupt()]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Lines of the plugin's own log, from warnings on."""

    def lines() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.name.startswith("rheo") and record.levelno >= logging.WARNING
        ]

    return lines


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_ends_a_thread_is_told_in_one_line(error: BaseException) -> None:
    told: list[str] = []

    def run() -> None:
        raise error

    await_end(start_thread("rheo-test", run, told.append))
    assert told == [in_words(error)]
    assert told[0].startswith(type(error).__name__) and "\n" not in told[0]


def test_a_thread_that_returns_is_no_failure() -> None:
    told: list[str] = []
    await_end(start_thread("rheo-test", lambda: None, told.append))
    assert told == []


def test_a_trace_on_a_full_disk_ends_and_its_steps_are_counted(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    tracer = tracer_of(tmp_path / "trace", waiting_bytes=2**20)
    with full_disk(64):
        for number in range(1, 6):
            run_step(tracer, number)
        tracer.close()
    assert (tracer.writer.steps, tracer.writer.dropped_steps, tracer.writer.ended) == (0, 5, True)
    assert len(warnings()) == 1 and "cannot be written" in warnings()[0]
    assert not list((tmp_path / "trace").glob("*.unfinished")), "what was written in part takes room"


def dies_of_an_event(tracer: Any) -> None:
    """An event that waits for a device that has failed."""

    def event() -> Step:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    tracer.writer.offer(event, 100, steps=1)


def dies_of_what_it_cannot_write(tracer: Any) -> None:
    """A step whose lists do not fit each other."""
    odd = step(9, [64])
    odd.requests.append("without pages")
    tracer.writer.offer(lambda: odd, 100, steps=1)


def is_killed(tracer: Any) -> None:
    kill(tracer.writer._thread)
    tracer.writer.offer(lambda: step(9, [64]), 100, steps=1)


@pytest.mark.parametrize("die", [dies_of_an_event, dies_of_what_it_cannot_write, is_killed])
def test_a_tracers_thread_that_dies_ends_the_trace_and_nothing_piles_up(
    die: Callable[[Any], None],
    tmp_path: Path,
    warnings: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rheo_sglang.traces.writer.PART_BYTES", 1)
    tracer = tracer_of(tmp_path / "trace", waiting_bytes=2**20)
    run_step(tracer, 1)
    await_that(lambda: tracer.writer.steps == 1)
    die(tracer)
    await_end(tracer.writer._thread)
    for number in range(2, 6):
        run_step(tracer, number)
    tracer.close()
    report = tracer.writer.report()
    assert report["ended"] and report["steps"] == 1
    assert report["dropped_steps"] in (4, 5), "one that a killed thread held may be gone"
    assert tracer.writer._queue.empty(), "what nobody writes takes memory"
    assert len(warnings()) == 1 and warnings()[0].startswith("rheo: tracing ends after 1 steps")
    events = list(Trace(tmp_path / "trace").events())
    assert [event.number for event in events if isinstance(event, Step)] == [1]


def test_an_importance_file_that_cannot_be_written_is_one_line_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, warnings: Callable[[], list[str]]
) -> None:
    caplog.set_level(logging.INFO)
    cache, now = Cache(), [0.0]
    path = tmp_path / "importance"
    export = ImportanceExport(cache.importance, str(path), 1.0, clock=lambda: now[0])

    def snapshot() -> None:
        now[0] += 1.0
        start = 1000 * int(now[0])
        cache.insert(list(range(start, start + TREE_PAGE)))
        export.poll()
        export.flush()

    snapshot()
    before = path.read_bytes()
    with full_disk(64):
        for _ in range(3):
            snapshot()
    assert export.written == 1 and len(warnings()) == 1
    assert path.read_bytes() == before, "readers keep the last whole file"
    assert list(tmp_path.iterdir()) == [path]
    snapshot()
    assert export.written == 2 and "is written again" in caplog.text
    assert read_snapshot(path) is not None
    with full_disk(64):
        snapshot()
    assert len(warnings()) == 2, "a new failure is told"


def test_the_thread_of_the_importance_file_dies_and_the_scheduler_goes_on(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    cache, now = Cache(), [0.0]
    export = ImportanceExport(cache.importance, str(tmp_path / "file"), 1.0, clock=lambda: now[0])
    kill(export.thread)
    cache.insert(list(range(2 * TREE_PAGE)))
    export.poll()
    await_end(export.thread)
    export.flush()
    for second in range(1, 4):
        now[0] = float(second)
        cache.insert(list(range(700 * second, 700 * second + TREE_PAGE)))
        export.poll()
        export.flush()
    assert export.ended and export.written == 0
    assert len(warnings()) == 1 and "its thread ended (SystemExit)" in warnings()[0]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path / "storage", monkeypatch)


def test_a_full_disk_costs_pages_in_storage_and_nothing_else(
    world: World,
    warnings: Callable[[], list[str]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with full_disk():
        for kind in range(8):
            world.cache(world.tokens(kind, 20, 21))
        world.write_all()
    assert world.counters["write_errors"] == 1, "a disk that is full is not asked for every page"
    assert world.counters["pages_dropped"] == 23
    assert len(warnings()) == 1 and len([line for line in caplog.messages if "Failed to save" in line]) == 1
    assert world.files() == [] and world.tier.off is None
    world.check(world.tokens(3, 20, 21))
    assert world.accounts_for_every_page()
    monkeypatch.setattr(store, "REST_SECONDS", 0.0)
    world.tier.store._rests_until = 0.0
    world.cache(world.tokens(30, 31))
    world.write_all()
    assert world.counters["pages_written"] == 2, "it is written to again"


def test_a_folder_that_goes_away_costs_pages_in_storage_and_nothing_else(
    world: World, warnings: Callable[[], list[str]]
) -> None:
    world.cache(world.tokens(1, 2))
    world.write_all()
    world.flush()
    world.folder.rename(world.folder.with_name("elsewhere"))
    world.folder.write_text("no folder")
    assert world.fetch(world.tokens(1, 2, 3)) == 0
    world.cache(world.tokens(1, 2, 4))
    world.write_all()
    assert world.counters["write_errors"] == 1 and world.tier.off is None
    assert len(warnings()) == 1
    assert world.accounts_for_every_page()


def test_the_thread_that_writes_to_storage_dies_and_storage_is_off(
    world: World, warnings: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    world.tier.start()
    thread = world.tier.threads[0]
    kill(thread)
    await_end(thread)
    assert world.tier.off == "the thread that writes ended (SystemExit)"
    for kind in range(6):
        world.cache(world.tokens(kind, 20))
    assert len(world.tier.pending) == 0, "pages that nobody writes are not kept"
    assert world.fetch(world.tokens(40, 41)) == 0
    assert len(warnings()) == 1 and warnings()[0].startswith("rheo: storage is off from now on")
    assert world.accounts_for_every_page()


@pytest.mark.parametrize("read", [0, 1])
def test_a_request_does_not_wait_for_a_thread_that_died(
    read: int,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: Callable[[], list[str]],
) -> None:
    tokens = world.tokens(1, 2)
    world.cache(tokens)
    world.write_all()
    again = World(world.folder, monkeypatch)
    request = again.request(tokens)
    again.tier.prefetch(request)
    if read:
        again.tier.reader.step()
        assert not again.tier.ready(request.rid), "its pages are allocated, and asked for"
    again.tier.start()
    thread = again.tier.threads[1]
    kill(thread)
    again.tier.reader.put(again.tier._prefetches[request.rid])
    await_end(thread)
    assert again.tier.ready(request.rid), "the policy would have it wait for ever"
    again.tier.prefetch(again.request(tokens))
    assert not again.tier._prefetches, "nothing more is asked for"
    assert len(warnings()) == 1
    assert again.cached(tokens) in (0, PAGE, 2 * PAGE)
    again.table.settle()
    again.flush()
    assert again.accounts_for_every_page()


def test_where_restored_pages_have_no_room_on_the_host_the_prefix_is_computed(
    world: World, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    tokens = world.tokens(1, 2)
    world.cache(tokens)
    world.write_all()
    again = World(world.folder, monkeypatch)
    empty_rows = again.tier.memory.empty_rows
    monkeypatch.setattr(again.tier.memory, "empty_rows", lambda count: empty_rows(count << 40))
    assert again.fetch(tokens) == 0
    assert again.counters["prefetches_declined"] == 1
    assert len(warnings()) == 1 and "for want of memory" in warnings()[0]
    assert again.accounts_for_every_page()
