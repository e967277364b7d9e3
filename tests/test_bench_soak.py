"""The soak: its load is what servers allow, and what it looks for is found."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import soak_faults
from benchmarks.soak import FREE, THREADS, features, not_told
from benchmarks.soak_load import ASKED, REFUSED, SIZES, contradictions
from rheo_sglang.config import RheoConfig
from rheo_sglang.errors import ConfigError
from rheo_sglang.request_settings import read_settings
from rheo_sglang.threads import start_thread


def counters(**changed: int) -> dict[str, Any]:
    found = dict.fromkeys(FREE, 1) | {"frames_total": 10, "pages_total": 10} | changed
    return {"counters": found, "recorder": None}


def test_what_agrees_is_no_contradiction() -> None:
    state = counters()
    assert contradictions(state) == []
    state["recorder"] = {"requests": [{"rid": "a", "hit_rate": None}, {"rid": "b", "hit_rate": 0.5}]}
    assert contradictions(state) == []


@pytest.mark.parametrize(
    "changed", [{"frames_used": 11}, {"pages_allocated": -1}, {"pages_resident": 2, "pages_allocated": 1}]
)
def test_counters_that_cannot_be_are_found(changed: dict[str, int]) -> None:
    assert contradictions(counters(**changed))


def test_a_hit_rate_beyond_one_is_found() -> None:
    state = counters()
    state["recorder"] = {"requests": [{"rid": "a", "hit_rate": 1.5}]}
    assert contradictions(state) == ["request a: hit rate 1.5"]


@pytest.mark.parametrize("name", SIZES)
def test_servers_take_what_is_asked_and_refuse_what_is_to_be_refused(name: str) -> None:
    config = RheoConfig(**SIZES[name].config)
    for settings in ASKED:
        read_settings({"rheo": settings}, config)
    for settings in REFUSED:
        with pytest.raises(ConfigError):
            read_settings({"rheo": settings}, config)


def test_pages_from_storage_that_nobody_read_are_found() -> None:
    state = counters() | {"storage": {"pages_restored": 3, "pages_read": 2}}
    assert contradictions(state) == ["3 pages restored, 2 read"]


@pytest.mark.parametrize("name", SIZES)
def test_every_thread_that_is_ended_has_work(name: str, tmp_path: Path) -> None:
    settings, arguments = features(tmp_path)
    config = RheoConfig(**SIZES[name].config, **settings)
    assert config.trace and config.importance_file and "--hicache-storage-backend" in arguments


def test_an_end_is_told_once() -> None:
    told = [f"[time] {words} (SystemExit)\n" for words in THREADS.values()]
    assert not_told("".join(told)) == []
    assert not_told("".join(told[1:])) == ["rheo-trace"]
    assert not_told("".join([told[0], *told])) == ["rheo-trace"]


def test_a_trace_that_was_full_before_its_thread_ended_is_not_told_twice() -> None:
    full = "rheo: tracing ends after 9 steps, for /trace has the size that trace_gib allows\n"
    ended = "rheo: tracing ends after 9 steps, for the thread that writes /trace ended (SystemExit)\n"
    others = [f"{words}\n" for name, words in THREADS.items() if name != "rheo-trace"]
    assert not_told("".join([full, ended, *others])) == []
    assert not_told("".join([full, *others])) == ["rheo-trace"]


def test_a_thread_ends_when_its_file_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: queue.SimpleQueue[None] = queue.SimpleQueue()
    told: list[str] = []

    def run() -> None:
        while True:
            asked.get()

    monkeypatch.setenv(soak_faults.ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(soak_faults, "LOOK_SECONDS", 0.01)
    soak_faults.register()
    thread = start_thread("rheo-soak-test", run, told.append)
    (tmp_path / "rheo-soak-test").touch()
    (tmp_path / "no-such-thread").touch()
    deadline = time.monotonic() + 30
    done = tmp_path / f"rheo-soak-test{soak_faults.DONE}"
    assert not done.exists(), "it waits for work"
    while not done.exists() and time.monotonic() < deadline:
        asked.put(None)
        time.sleep(0.01)
    assert not thread.is_alive()
    assert told == ["SystemExit"]
    assert (tmp_path / "no-such-thread").exists(), "another process may have it"
