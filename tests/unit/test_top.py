"""`rheo top`: rates between two looks, what is shown of a server, and one sentence where there is none."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from rheo_sglang import server_info
from rheo_sglang.cli import CLOSED_PIPE, main
from rheo_sglang.top.look import Look, looks
from rheo_sglang.top.view import render
from unit.test_report_command import KEY, closed_port, http_server

URL = "http://127.0.0.1:30000"
WIDTHS = (80, 160)


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "API_KEY"):
        monkeypatch.delenv(name, raising=False)


def state(steps: int, **metrics: Any) -> dict[str, Any]:
    """A scheduler after some decode steps of one request, in each of which 4 of 16 pages are selected and 3 hit."""
    requests = [
        {
            "rid": f"[/x]{rid}",
            "iterations": count,
            "hit_rate": 0.75,
            "selected_share": 0.25,
            "estimated_coverage": 0.9,
        }
        for rid, count in (("ended", 9), ("runs", steps))
    ]
    numbers = {
        "decode_steps_total": steps,
        "decoded_tokens_total": steps,
        "summarised_tokens_total": 256 + steps,
        "samples_total": 4 * steps,
        "context_pages_total": 64 * steps,
        "selected_pages_total": 16 * steps,
        "hit_pages_total": 12 * steps,
        "missed_pages_total": {"fetch": 3 * steps, "cpu": steps},
        "missed_bytes_total": {"fetch": 3072 * steps, "cpu": 1024 * steps},
        "layer_hit_rate": {"0": 0.9, "1": 0.6},
        "estimated_coverage": 0.875,
        "frames_used": 30,
        "frames_free": 10,
        "host_pages_used": 17,
        "host_pages_free": 983,
        "working_set_pages": 12.0,
        "overcommit": 1.2,
        "cpu_attention_threads": None,
        "admission_events_total": None,
        **metrics,
    }
    return {"last_gen_throughput": 12.5, "rheo": {"metrics": numbers, "recorder": {"requests": requests}}}


def shown(seen: list[Look], width: int = 120, note: str = "") -> str:
    """The words that are shown, wherever lines end."""
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(render(seen, URL, note))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    return " ".join(text.replace("│", " ").split())


@contextmanager
def served(*states: dict[str, Any], **options: Any) -> Iterator[str]:
    with http_server(json.dumps({"internal_states": states}), **options) as url:
        yield url


def test_a_first_look_is_since_the_start() -> None:
    text = shown(looks([state(10)], 0.0, []))
    for part in (
        URL,
        "since the start",
        "12.5 tokens/s",
        "0.750 of the selected pages",
        "30 of 40 frames",
        "17 of 1,000 pages",
        "over PCIe 30 pages (30.0 KiB), on the CPU 10 pages (10.0 KiB)",
        "4.0 pages",
        "25.0 % of the context, 87.5 % of the attention",
        "1.20 times the frames",
        "[/x]ended",
        "[/x]runs",
    ):
        assert part in text, part
    assert "CPU threads" not in text and "admission" not in text
    assert text.index("0.600") < text.index("0.900"), "the lowest layer is not the first"


def test_the_next_look_is_about_what_happened_in_between() -> None:
    first = looks([state(10)], 5.0, [])
    second = looks([state(30, hit_pages_total=12 * 10 + 16 * 20)], 15.0, first)
    text = shown(second)
    for part in (
        "over the last 10.0 s",
        "2.0 tokens/s decoded",
        "2.0 steps/s",
        "1.000 of the selected pages",
        "over PCIe 6 pages/s (6.0 KiB/s)",
        "[/x]runs",
    ):
        assert part in text, part
    assert "[/x]ended" not in text, "a request that did nothing is shown"
    idle = shown(looks([state(30, hit_pages_total=440)], 20.0, second))
    assert "no step selected pages" in idle and "0.0 tokens/s" in idle


def test_a_server_that_started_again_is_looked_at_anew() -> None:
    first = looks([state(10)], 0.0, [])
    assert looks([state(3)], 2.0, first)[0].before is None
    assert looks([state(12), state(12)], 2.0, first)[0].before is None


@pytest.mark.parametrize("width", WIDTHS)
def test_cpu_threads_admission_and_thrash(width: int) -> None:
    events = {"admitted": 5, "refused": 1234, "paused": 2}
    more = {
        "cpu_attention_threads": 14,
        "cpu_attention_busy_seconds_total": 1.0,
        "admission_events_total": events,
        "thrash": 1,
        "budget_factor": 0.5625,
        "running_limit": 3,
    }
    first = looks([state(10, **more)], 0.0, [])
    second = state(20, **more | {"cpu_attention_busy_seconds_total": 2.5})
    text = shown(looks([second], 2.0, first), width)
    for part in ("busy 75.0 % of the time", "refused 1,234", "budgets x 0.56", "3 requests at most"):
        assert part in text, part


def test_a_server_that_knows_little() -> None:
    """No recorder, nothing counted yet, or an older server, which tells no metrics."""
    assert "the recorder is off" in shown(looks([{"rheo": {"metrics": {}, "recorder": None}}], 0.0, []))
    assert "hit rate" in shown(looks([{"rheo": {}}], 0.0, []))


def test_replicas_have_panels_of_their_own() -> None:
    assert "replica 1" in shown(looks([state(1), state(2)], 0.0, []))


def test_once(capsys: pytest.CaptureFixture[str]) -> None:
    with served(state(10), key=KEY) as url:
        assert main(["top", "--once", "--url", url, "--api-key", KEY]) == 0
        out = capsys.readouterr().out
        assert "0.750 of the selected pages" in out and "\x1b" not in out
        assert main(["top", "--once", "--url", url]) == server_info.NOT_ALLOWED
        assert "rheo top: error: the server at" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--once"]])
def test_no_server(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    url = closed_port()
    assert main(["top", *options, "--url", url]) == server_info.NOT_REACHED
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "connection refused" in err


def started(url: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "rheo_sglang.cli", "top", "--url", url, "--interval", "0.05"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def views(process: subprocess.Popen, count: int) -> None:
    """Read so many views."""
    assert process.stdout is not None
    for line in process.stdout:
        count -= "rheo top" in line
        if count == 0:
            return
    pytest.fail("the command ended")


def test_a_picture_of_the_view_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(state(10)) as url:
        assert main(["top", "--url", url, "--svg", str(tmp_path / "top.svg")]) == 0
        assert main(["top", "--url", url, "--svg", str(tmp_path / "no" / "top.svg")]) == 1
    picture = (tmp_path / "top.svg").read_text()
    root = ElementTree.fromstring(picture)
    assert root.tag.endswith("svg")
    words = " ".join("".join(root.itertext()).split())
    assert "rheo top" in words and "hit rate" in words and "0.750" in words
    assert "font-face" not in picture, "nothing is fetched from elsewhere to show it"
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("rheo top: error: ") and "cannot be written" in printed.err


def test_in_a_pipe_views_follow_each_other_until_the_server_has_gone() -> None:
    with served(state(10)) as url:
        process = started(url)
        views(process, 3)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == server_info.NOT_REACHED
    assert errors.startswith("rheo top: error: ") and errors.count("\n") == 1


def test_a_reader_that_leaves_early_ends_the_command_quietly() -> None:
    with served(state(10)) as url:
        process = started(url)
        views(process, 1)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        process.stderr.close()
        assert process.wait(timeout=60) == CLOSED_PIPE
