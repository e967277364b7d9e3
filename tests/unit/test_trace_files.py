"""A trace's files: what was written is read, a slow writer drops and counts, a torn trace ends where it tore."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from rheo_kernels.types import DecodeBatch, Selected
from rheo_sglang.config import RheoConfig
from rheo_sglang.errors import ConfigError
from rheo_sglang.traces import Trace, TracedShape, TraceError, Tracer, open_trace
from rheo_sglang.traces.events import Noted, Prompts, Step
from rheo_sglang.traces.format import MANIFEST
from rheo_sglang.traces.writer import TraceWriter

LAYERS, HEADS, PAGE_SIZE = 2, 3, 16
SHAPE = TracedShape("model", PAGE_SIZE, LAYERS, 0, HEADS, 2, 16, 60, 8, "bound", 2048)


def step(number: int, lengths: list[int]) -> Step:
    draw = np.random.default_rng(number)
    num_pages = [-(-length // PAGE_SIZE) for length in lengths]
    lists = (LAYERS, len(lengths), HEADS)
    pages = np.zeros((len(lengths), max(num_pages)), dtype=np.int32)
    for row, count in enumerate(num_pages):
        pages[row, :count] = draw.permutation(59)[:count] + 1
    num_selected = draw.integers(1, min(num_pages) + 1, lists).astype(np.int32)
    selected = draw.permuted(
        np.broadcast_to(np.arange(min(num_pages), dtype=np.int32), (*lists, min(num_pages))), axis=3
    )
    return Step(
        number,
        [f"request {row}" for row in range(len(lengths))],
        np.array(lengths, dtype=np.int32),
        pages,
        draw.normal(size=(*lists, max(num_pages))).astype(np.float32),
        selected,
        draw.integers(0, num_selected + 1).astype(np.int32),
        num_selected,
    )


def write(folder: Path, events: list[Noted | Prompts | Step], **options: int) -> TraceWriter:
    manifest = {"schema": 1, "page_size": PAGE_SIZE, "layers": LAYERS, "kv_heads": HEADS}
    writer = TraceWriter(folder, manifest, 2**30, **options)
    for event in events:
        writer.offer(lambda event=event: event, 0)  # type: ignore[misc]
    writer.close()
    return writer


def check_equal(found: Step, expected: Step) -> None:
    assert (found.number, found.requests) == (expected.number, expected.requests)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.scores is not None and expected.scores is not None
    assert found.selected is not None and expected.selected is not None
    assert found.num_selected is not None and expected.num_selected is not None
    np.testing.assert_array_equal(found.num_hits, expected.num_hits)
    np.testing.assert_array_equal(found.num_selected, expected.num_selected)
    for row, length in enumerate(expected.tokens.tolist()):
        count = -(-length // PAGE_SIZE)
        np.testing.assert_array_equal(found.pages[row, :count], expected.pages[row, :count])
        mine, theirs = (one.scores[:, row, :, :count] for one in (found, expected))
        np.testing.assert_array_equal(mine, theirs)
    within = np.arange(expected.selected.shape[3]) < expected.num_selected[..., None]
    np.testing.assert_array_equal(
        found.selected[within[..., : found.selected.shape[3]]], expected.selected[within]
    )


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    mass = np.random.default_rng(0).random((LAYERS, 1, HEADS, 5)).astype(np.float32)
    lists = np.array([[4, 9, 2, 7, 1], [3, 5, 0, 0, 0]], dtype=np.int32)
    prompts = Prompts(
        ["a", "b"],
        np.array([70, 30], dtype=np.int32),
        lists,
        mass,
        np.array([3], dtype=np.int32),
        np.array([4, 9, 2, 7, 0], dtype=np.int32),
    )
    nothing = np.zeros(0, dtype=np.int32)
    dense = Step(2, ["a"], np.array([71], dtype=np.int32), lists[:1])
    fold = Noted("fold", np.array([9], dtype=np.int32), np.array([3], dtype=np.int32))
    events = [prompts, step(1, [100, 40]), dense, fold, Noted("clear", nothing, nothing), step(3, [33])]
    writer = write(tmp_path / "trace", events)
    assert (writer.steps, writer.dropped_steps, writer.ended) == (3, 0, False)
    found = list(Trace(tmp_path / "trace").events())
    assert [type(event) for event in found] == [type(event) for event in events]
    read, first, shortcut, folded, cleared, last = found
    assert isinstance(read, Prompts) and isinstance(first, Step) and isinstance(last, Step)
    assert (read.requests, read.tokens.tolist(), read.caps.tolist()) == (["a", "b"], [70, 30], [3])
    assert read.offered.tolist() == [4, 9, 2, 7, 0]
    assert [row[row > 0].tolist() for row in read.pages] == [[4, 9, 2, 7, 1], [3, 5]]
    np.testing.assert_array_equal(read.mass, mass)
    check_equal(first, step(1, [100, 40]))
    check_equal(last, step(3, [33]))
    assert isinstance(shortcut, Step) and shortcut.scores is None and shortcut.number == 2
    assert isinstance(folded, Noted) and folded.survivors.tolist() == [3]
    assert isinstance(cleared, Noted) and cleared.kind == "clear"


def test_other_tools_read_the_folder(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write(tmp_path / "trace", [step(1, [100, 40])])
    table = pq.read_table(tmp_path / "trace")
    assert len(table) == 2 * (1 + LAYERS)
    assert set(table["request"].to_pylist()) == {"request 0", "request 1"}


def tracer_of(folder: Path, waiting_bytes: int) -> Tracer:
    manifest = {"schema": 1, "page_size": PAGE_SIZE, "layers": LAYERS, "kv_heads": HEADS}
    writer = TraceWriter(folder, manifest, 2**30, waiting_bytes)
    return Tracer(writer, LAYERS, HEADS, torch.device("cpu"))


def run_step(tracer: Tracer, number: int) -> None:
    batch = DecodeBatch.allocate(1, 4, "cpu")
    batch.pages.copy_(torch.arange(1, 5))
    tracer.settle([("release", (torch.tensor([number + 10]),))])
    tracer.begin_step(number, ["r"], torch.tensor([64]), batch, 2)
    chosen = torch.zeros((1, HEADS, 2), dtype=torch.int32)
    counts = torch.full((1, HEADS), 2, dtype=torch.int32)
    for layer in range(LAYERS):
        scores = torch.full((1, HEADS, 4), float(number))
        tracer.layer(layer, scores, Selected(chosen, chosen, chosen, chosen, chosen, counts, counts))


def test_steps_that_a_slow_writer_has_no_room_for_are_dropped_and_counted(tmp_path: Path) -> None:
    tracer = tracer_of(tmp_path / "trace", waiting_bytes=2000)
    blocked = threading.Event()
    nothing = np.zeros(0, dtype=np.int32)

    def slow() -> Noted:
        blocked.wait(30)
        return Noted("clear", nothing, nothing)

    tracer.writer.offer(slow, 0)
    for number in range(1, 21):
        run_step(tracer, number)
    dropped = tracer.writer.dropped_steps
    assert 0 < dropped < 20
    blocked.set()
    tracer.close()
    assert tracer.writer.report()["steps"] == 20 - dropped
    trace = Trace(tmp_path / "trace")
    events = list(trace.events())
    assert trace.dropped == dropped
    assert [event.number for event in events if isinstance(event, Step)] == list(range(1, 21 - dropped))
    freed = [event.pages.tolist() for event in events if isinstance(event, Noted) and event.kind == "free"]
    assert freed == [[number + 10] for number in range(1, 21)], "what was freed is never dropped"


def test_a_trace_ends_at_its_size_and_counts_what_comes_after(tmp_path: Path) -> None:
    manifest = {"schema": 1, "page_size": PAGE_SIZE, "layers": LAYERS, "kv_heads": HEADS}
    writer = TraceWriter(tmp_path / "trace", manifest, most_bytes=1)
    tracer = Tracer(writer, LAYERS, HEADS, torch.device("cpu"))
    run_step(tracer, 1)
    writer._thread.join(0)
    for _ in range(400):
        if writer.ended:
            break
        threading.Event().wait(0.05)
    assert writer.ended
    run_step(tracer, 2)
    tracer.close()
    assert (writer.steps, writer.dropped_steps) == (1, 1)


def parts_of(folder: Path) -> list[Path]:
    """A trace of three parts, one step each."""
    for number in range(3):
        write(folder / str(number), [step(number, [64])])
        (folder / str(number) / "part-00000.parquet").rename(folder / f"part-{number:05d}.parquet")
    (folder / "0" / MANIFEST).rename(folder / MANIFEST)
    return sorted(folder.glob("part-*"))


def test_a_trace_whose_last_part_is_torn_is_read_up_to_it(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    parts[2].write_bytes(parts[2].read_bytes()[:-100])
    (tmp_path / "part-00003.parquet.unfinished").write_bytes(b"PAR1")
    assert [event.number for event in Trace(tmp_path).events() if isinstance(event, Step)] == [0, 1]


def damaged(folder: Path) -> None:
    parts_of(folder)[1].write_bytes(b"PAR1")


def without_parts(folder: Path) -> None:
    for part in parts_of(folder):
        part.unlink()


def of_another_version(folder: Path) -> None:
    parts_of(folder)
    (folder / MANIFEST).write_text(json.dumps({"schema": 99}))


def of_ranks(folder: Path) -> None:
    for rank in ("rank-0-0-0", "rank-0-0-1"):
        (folder / rank).mkdir()
        (folder / rank / MANIFEST).write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (damaged, "is damaged: part-00001.parquet cannot be read"),
        (without_parts, "holds no complete part"),
        (of_another_version, "is a trace of version 99"),
        (of_ranks, "give one of: rank-0-0-0, rank-0-0-1"),
        (lambda folder: None, "is no trace"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(spoil: object, sentence: str, tmp_path: Path) -> None:
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(TraceError, match=sentence) as caught:
        Trace(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_trace_goes_into_a_new_or_empty_folder(tmp_path: Path) -> None:
    config = RheoConfig(trace=str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"trace=.*allowed: a new or empty folder"):
        open_trace(tmp_path, config, SHAPE, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"trace=.*allowed: a folder that can be written to"):
        open_trace(tmp_path / "file" / "trace", config, SHAPE, torch.device("cpu"))
    open_trace(tmp_path / "trace", config, SHAPE, torch.device("cpu")).close()
    assert json.loads((tmp_path / "trace" / MANIFEST).read_text())["summary"] == "bound"
