"""The printed report: every number, names as clients chose them, and what the numbers are of."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from rheo_sglang.recorder import Recorder
from rheo_sglang.recorder.report import print_report, render_report
from rheo_sglang.storage.counters import NAMES, StorageCounters

LAYERS, HEADS = 2, 3
WIDTHS = (80, 200)
PREFIX = {
    "node": 71,
    "nodes": 2,
    "tokens": 4096,
    "shared_tokens": 1600,
    "importance": 0.123,
    "resident": 0.5,
    "locked": True,
}


def rendered(state: dict, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(render_report(state))
    return console.export_text()


def report_of(
    rid: str, with_mass: bool = False, with_coverage: bool = False, with_growth: bool = False
) -> dict:
    recorder = Recorder(2, LAYERS, HEADS, "cpu", with_mass, with_coverage, with_growth)
    rows = recorder.begin_step([rid], torch.tensor([8]))
    for layer, hits in enumerate([[2, 1, 0], [2, 2, 2]]):
        coverage = torch.full((1, HEADS), 0.9375)
        recorder.count(layer, rows, torch.tensor([hits]), torch.tensor([[2] * HEADS]), coverage)
        growth = recorder.growth(layer, rows)
        if growth is not None:
            growth.samples[growth.slots, 1] += 1
            growth.pages[growth.slots, 1] += 3000
        if with_mass:
            recorder.cover(layer, rows, torch.tensor([[0.875, 0.875, float("nan")]]))
    return recorder.report()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_average_and_counter_is_shown_whole(width: int) -> None:
    state = {
        "recorder": report_of("request-one", with_mass=True),
        "counters": {"frames_used": 1234567, "something_new": 5},
        "misses": {"took_us": 12.5, "expected_us": None},
        "prefixes": [PREFIX],
    }
    text = rendered(state, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for shown in (
        "request-one",
        "75.00 %",
        "50.00 %",
        "100.00 %",
        "25.00 %",
        "87.50 %",
        "frames used",
        "1,234,567",
        "something new",
        "12.5",
        "4,096",
        "1,600",
        "0.123",
        " 71 ",
        "yes",
    ):
        assert shown in text, shown
    assert "…" not in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("with_mass", [False, True])
def test_estimated_coverage_is_shown_beside_the_hit_rate(with_mass: bool, width: int) -> None:
    text = rendered({"recorder": report_of("a", with_mass, True), "counters": {}}, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    lines = [line for line in text.splitlines() if "25.00 %" in line]
    assert len(lines) == 2, "of the request, and of all"
    assert all(("87.50 %" if with_mass else "93.75 %") in line for line in lines)
    words = " ".join(text.split())
    assert ("93.75 % of all as estimated by page summaries" in words) == with_mass
    assert "estimated by page summaries" in words
    assert "estimated" not in rendered({"recorder": report_of("a", with_mass), "counters": {}}, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_budgets_that_grew_are_shown_where_they_may(width: int) -> None:
    text = rendered({"recorder": report_of("a", False, True, True), "counters": {}}, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    lines = [line for line in text.splitlines() if "33.33 %" in line and "1,000.0" in line]
    assert len(lines) == 2, "of the request, and of all"
    words = " ".join(text.split())
    assert "grew: samples that were allowed more than the budget" in words
    assert "grew" not in rendered({"recorder": report_of("a"), "counters": {}}, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_working_sets_are_shown_against_the_frames(width: int) -> None:
    sets = {
        "steps": 64,
        "frames": 400,
        "counted_at": 81,
        "layers": [300.0, 100.5],
        "per_layer_head": [[290, 310], [100, 101]],
        "requests": [{"rid": "[/a]", "pages": 150.2, "per_head": [140.4, 160.0]}],
    }
    text = rendered({"recorder": None, "counters": {}, "working_sets": sets}, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for shown in ("[/a]", "150.2", "37.55 %", "140.4", "160.0", "layer 1", "100.5", "75.00 %", "310", "400"):
        assert shown in text, shown
    assert "Working sets" not in rendered({"recorder": None, "working_sets": {**sets, "requests": []}}, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_admission_did_is_shown(width: int) -> None:
    admission = {
        "frames_needed": 4321.5,
        "frames": 4681,
        "overcommit": 2.0,
        "growth": 2.25,
        "hit_rate": None,
        "budget_factor": 0.5625,
        "most_running": None,
        "counters": {"shrink": 17, "paused": 3},
    }
    text = rendered({"recorder": None, "counters": {}, "admission": admission}, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for shown in ("4,321.5", "4,681", "2.25", "0.5625", "shrink", "17", "paused"):
        assert shown in text, shown
    assert "Admission" not in rendered({"recorder": None, "admission": None}, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_totals_say_what_they_count(width: int) -> None:
    text = " ".join(rendered({"recorder": report_of("a"), "counters": {"frames_total": 9}}, width).split())
    assert "the last 256 that ended" in text
    assert "layers x KV heads x decode steps" in text
    assert "frames x layers x KV heads" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "rid",
    ["[/x]", "[bold]x", "a[b]c", "[link=http://x]y[/link]", ":smile:", "[", "\\[x]", "x" * 12 + "1", "a b"],
)
def test_a_request_id_is_shown_as_it_is(rid: str, width: int) -> None:
    assert rid in rendered(
        {"recorder": report_of(rid), "counters": {"[/y]": 1}, "misses": {"[/z]": 1}}, width
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_request_id_is_folded_and_not_cut(width: int) -> None:
    rid = "".join(chr(ord("a") + number % 26) for number in range(150))
    text = rendered({"recorder": report_of(rid), "counters": {}}, width)
    kept = "".join(line.split("│")[1].strip() for line in text.splitlines() if line.count("│") > 4)
    assert rid in kept


def test_a_request_id_does_not_control_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(render_report({"recorder": report_of("a\x1b[2Jb\nc\rd"), "counters": {}}))
    output = console.file.getvalue()
    assert "\x1b[2J" not in output and "\r" not in output
    assert r"a\x1b[2Jb\nc\rd" in output


def test_a_mass_that_is_not_finite_is_a_dash_and_is_counted() -> None:
    report = report_of("a", with_mass=True)
    report["overall"]["mass_covered"] = None
    text = rendered({"recorder": report, "counters": {}, "not_finite": 1}, 200)
    assert "2 samples" in text
    assert "1 numbers were not finite" in text


def test_numbers_that_were_replaced_by_null_are_dashes() -> None:
    text = rendered({"recorder": None, "prefixes": [{**PREFIX, "importance": None, "resident": None}]})
    assert "4,096" in text


def test_the_report_says_when_there_is_nothing_to_show() -> None:
    assert "recorder='off'" in rendered({"recorder": None, "counters": {}})
    empty = Recorder(1, LAYERS, HEADS, "cpu", False).report()
    assert "No decode step" in rendered({"recorder": empty, "counters": {}})


def test_the_report_is_printed_to_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_report({"recorder": report_of("[/x]"), "counters": {}})
    assert "[/x]" in capsys.readouterr().out


def test_what_storage_did_is_a_table_that_says_when_it_is_off() -> None:
    counters = StorageCounters()
    for number, name in enumerate(NAMES):
        counters.add(name, 1000 + number)
    storage = {"backend": "file", "policy": "timeout", "page_bytes": 123456, "off": None, "pages_pending": 7}
    text = rendered({"storage": {**storage, **counters.report()}}, 200)
    for number, name in enumerate(NAMES):
        assert name.replace("_", " ") in text
        assert f"{1000 + number:,}" in text
    assert "123,456 bytes" in text
    assert "Off" not in text
    off = rendered({"storage": {**storage, "off": "changed"}}, 200)
    assert "Off: changed." in " ".join(off.split())
    assert "storage" not in rendered({"storage": None}, 200)
