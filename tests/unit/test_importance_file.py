"""The importance file: whole or not at all, by block hash, and what a reader makes of one that is torn, gone or old."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from rheo_sglang.importance.file import COLUMNS, ImportanceFile, Snapshot, read_snapshot, write_snapshot


def snapshot(blocks: dict[int, float], time: float = 1000.0) -> Snapshot:
    count = len(blocks)
    columns = {
        "block_hash": np.array(list(blocks), np.int64),
        "importance": np.array(list(blocks.values()), np.float32),
        "resident": np.linspace(0, 1, count, dtype=np.float32),
        "position": np.arange(count, dtype=np.int32) * 32,
        "idle_steps": np.full(count, 7, np.int32),
    }
    return Snapshot(columns, page_size=32, step=12, time=time)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_what_is_written_is_read(tmp_path: Path, count: int) -> None:
    blocks = {(-1) ** index * (2**63 - 1 - index): index / 1000 for index in range(count)}
    written = snapshot(blocks)
    write_snapshot(tmp_path / "file", written)
    read = read_snapshot(tmp_path / "file")
    assert read is not None
    assert (read.page_size, read.step, read.time) == (32, 12, 1000.0)
    for name, kind in COLUMNS.items():
        assert read.columns[name].dtype == kind
        np.testing.assert_array_equal(read.columns[name], written.columns[name])
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_file_is_plain_npz(tmp_path: Path) -> None:
    """Whoever has numpy, or a zip and npy reader, needs nothing of rheo."""
    write_snapshot(tmp_path / "file", snapshot({5: 0.5}))
    with np.load(tmp_path / "file", allow_pickle=False) as content:
        assert content["version"] == 1
        assert set(content) == {"version", "page_size", "step", "time", *COLUMNS}
        assert content["block_hash"].tolist() == [5]


def test_no_part_of_a_file_is_taken_for_a_snapshot(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "file", snapshot({5: 0.5, 6: 0.25}))
    whole = (tmp_path / "file").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "torn").write_bytes(whole[:length])
        assert read_snapshot(tmp_path / "torn") is None, f"{length} of {len(whole)} bytes were read"


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_something_else_is_no_snapshot(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_snapshot(tmp_path / "file") is None
    assert read_snapshot(tmp_path) is None
    assert read_snapshot(tmp_path / "absent") is None


@pytest.mark.parametrize(
    "change", [{"version": np.int64(2)}, {"importance": np.zeros(3, np.float32)}, {"page_size": "x"}]
)
def test_another_version_or_columns_that_do_not_fit_are_no_snapshot(tmp_path: Path, change: dict) -> None:
    scalars = {"version": np.int64(1), "page_size": 32, "step": 0, "time": 0.0}
    np.savez(tmp_path / "file.npz", **{**scalars, **snapshot({5: 0.5}).columns, **change})
    assert read_snapshot(tmp_path / "file.npz") is None


def test_a_reader_follows_the_file_and_keeps_the_last_good_one_until_it_expires(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "file"
    reader = ImportanceFile(path, every=1.0, expires=60.0, clock=clock)
    assert reader.get_importance(5) is None
    write_snapshot(path, snapshot({5: 0.5}))
    assert reader.get_importance(5) is None, "the file is looked at again within a second"
    clock.now += 1
    assert reader.get_importance(5) == 0.5
    assert reader.get_importance(6) is None
    write_snapshot(path, snapshot({6: 0.25}, time=1010.0))
    clock.now += 1
    assert dict(reader.refresh()) == {6: 0.25}
    path.write_bytes(path.read_bytes()[:-1])
    clock.now += 1
    assert dict(reader.refresh()) == {6: 0.25}, "a torn file takes away what was known"
    path.unlink()
    clock.now += 1
    assert dict(reader.refresh()) == {6: 0.25}
    clock.now = 1010.0 + 61.0
    assert dict(reader.refresh()) == {}, "what a stopped server wrote is believed for ever"


def test_a_reader_beside_a_writer_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    sizes = [1, 3000]
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            write_snapshot(path, snapshot(dict.fromkeys(range(sizes[turn % 2]), 0.5)))
            turn += 1

    write_snapshot(path, snapshot({0: 0.5}))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = set()
        for _ in range(200):
            read = read_snapshot(path)
            assert read is not None
            seen.add(len(read.columns["block_hash"]))
    finally:
        stop.set()
        writer.join()
    assert seen <= set(sizes)
