"""The recorder counts every decode iteration of every request, layer and KV head once, and files it right."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from rheo_sglang.recorder import Recorder
from rheo_sglang.recorder.recorder import KEPT_REQUESTS
from rheo_sglang.recorder.report import render_report

LAYERS, HEADS = 2, 3


def make_recorder(with_mass: bool = False, rows: int = 6) -> Recorder:
    return Recorder(rows, LAYERS, HEADS, "cpu", with_mass)


def step(
    recorder: Recorder, rids: list[str], hits: list[list[list[int]]], selected: list[int]
) -> torch.Tensor:
    """One decode iteration: ``hits[request][layer][head]`` of ``selected[request]`` pages each."""
    rows = recorder.begin_step(rids)
    for layer in range(LAYERS):
        counted = torch.tensor([request[layer] for request in hits])
        recorder.count(layer, rows, counted, torch.tensor(selected)[:, None].expand(-1, HEADS))
    return rows


def by_rid(report: dict) -> dict[str, dict]:
    return {entry["rid"]: entry for entry in report["requests"]}


def test_counts_equal_a_hand_computed_example() -> None:
    recorder = make_recorder()
    step(recorder, ["a", "b"], [[[4, 2, 0], [4, 4, 4]], [[1, 1, 1], [0, 0, 0]]], [4, 2])
    step(recorder, ["a"], [[[4, 4, 2], [0, 2, 4]]], [4])
    report = recorder.report()
    first = by_rid(report)["a"]
    assert first["iterations"] == 2
    assert first["samples"] == 2 * LAYERS * HEADS
    assert first["per_layer"] == [round((1 + 0.5 + 0 + 1 + 1 + 0.5) / 6, 4), round((3 + 0 + 0.5 + 1) / 6, 4)]
    assert first["per_head"] == [0.75, round((0.5 + 1 + 1 + 0.5) / 4, 4), round((0 + 1 + 0.5 + 1) / 4, 4)]
    assert first["hit_rate"] == round((4.0 + 4.5) / 12, 4)
    assert first["page_hit_rate"] == round((4 + 2 + 12 + 4 + 4 + 2 + 0 + 2 + 4) / 48, 4)
    second = by_rid(report)["b"]
    assert (second["iterations"], second["samples"], second["hit_rate"]) == (1, 6, 0.25)
    assert report["overall"]["samples"] == 18
    assert report["overall"]["hit_rate"] == round((8.5 + 1.5) / 18, 4)
    assert report["overall"]["page_hit_rate"] == round((34 + 3) / (48 + 12), 4)
    assert "mass_covered" not in report["overall"]


def test_a_reused_row_starts_from_zero_and_keeps_what_was_there() -> None:
    recorder = make_recorder(rows=1)
    everything = [[[2] * HEADS] * LAYERS]
    nothing = [[[0] * HEADS] * LAYERS]
    step(recorder, ["old"], everything, [2])
    step(recorder, ["new"], nothing, [2])
    step(recorder, ["new"], nothing, [2])
    entries = by_rid(recorder.report())
    assert (entries["old"]["iterations"], entries["old"]["hit_rate"]) == (1, 1.0)
    assert (entries["new"]["iterations"], entries["new"]["hit_rate"]) == (2, 0.0)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_retracted_request_is_one_request_wherever_it_resumes(rows: int) -> None:
    recorder = make_recorder(rows=rows)
    full, half = [[[2] * HEADS] * LAYERS], [[[1] * HEADS] * LAYERS]
    step(recorder, ["a"], full, [2])
    step(recorder, ["other"], full, [2])
    step(recorder, ["a"], half, [2])
    step(recorder, ["a"], half, [2])
    report = recorder.report()
    assert len(report["requests"]) == 2
    entry = by_rid(report)["a"]
    assert (entry["iterations"], entry["samples"]) == (3, 3 * LAYERS * HEADS)
    assert entry["hit_rate"] == round(2 / 3, 4)


def test_health_checks_are_not_reported() -> None:
    recorder = make_recorder()
    full = [[[2] * HEADS] * LAYERS]
    step(recorder, ["HEALTH_CHECK_17"], full, [2])
    step(recorder, ["user"], [[[0] * HEADS] * LAYERS], [2])
    step(recorder, ["HEALTH_CHECK_18"], full, [2])
    report = recorder.report()
    assert [entry["rid"] for entry in report["requests"]] == ["user"]
    assert report["overall"]["hit_rate"] == 0.0


def test_covered_mass_is_averaged_over_iterations() -> None:
    recorder = make_recorder(with_mass=True)
    for mass in (0.5, 1.0):
        rows = step(recorder, ["a"], [[[1] * HEADS] * LAYERS], [2])
        for layer in range(LAYERS):
            recorder.cover(layer, rows, torch.full((1, HEADS), mass))
    assert by_rid(recorder.report())["a"]["mass_covered"] == 0.75


def test_a_running_request_keeps_its_row_while_others_come_and_go() -> None:
    recorder = make_recorder(rows=3)
    full = [[[2] * HEADS] * LAYERS]
    for number in range(5):
        step(recorder, ["stays", f"r{number}"], full * 2, [2, 2])
    entries = by_rid(recorder.report())
    assert {rid: entry["iterations"] for rid, entry in entries.items()} == {
        "stays": 5,
        **{f"r{number}": 1 for number in range(5)},
    }


def test_only_the_latest_finished_requests_are_kept() -> None:
    recorder = make_recorder(rows=1)
    for number in range(KEPT_REQUESTS + 11):
        step(recorder, [f"r{number}"], [[[1] * HEADS] * LAYERS], [2])
    rids = [entry["rid"] for entry in recorder.report()["requests"]]
    assert rids == [f"r{number}" for number in range(10, KEPT_REQUESTS + 11)]


def test_an_empty_recorder_reports_no_samples() -> None:
    recorder = make_recorder()
    assert recorder.report() == {
        "overall": {"samples": 0, "hit_rate": None, "page_hit_rate": None, "per_layer": [], "per_head": []},
        "requests": [],
    }


@pytest.mark.parametrize("with_mass", [False, True])
def test_a_report_survives_json(with_mass: bool) -> None:
    recorder = make_recorder(with_mass)
    step(recorder, ["a", "b"], [[[1] * HEADS] * LAYERS] * 2, [3, 2])
    report = recorder.report()
    assert json.loads(json.dumps(report)) == report


def rendered(state: dict) -> str:
    output = io.StringIO()
    Console(file=output, width=120).print(render_report(state))
    return output.getvalue()


def test_the_printed_report_shows_every_average_and_the_counters() -> None:
    recorder = make_recorder()
    step(recorder, ["request-one"], [[[2, 1, 0], [2, 2, 2]]], [2])
    prefixes = [{"tokens": 4096, "importance": 0.123, "resident": 0.5, "locked": True}]
    text = rendered({"recorder": recorder.report(), "counters": {"frames_used": 1234}, "prefixes": prefixes})
    for shown in (
        "request-one",
        "75.00 %",
        "50.00 %",
        "100.00 %",
        "frames used",
        "1,234",
        "4,096",
        "0.123",
        "yes",
    ):
        assert shown in text


def test_the_printed_report_says_when_there_is_nothing_to_show() -> None:
    assert "recorder='off'" in rendered({"recorder": None, "counters": {}})
    assert "No decode step" in rendered({"recorder": make_recorder().report(), "counters": {}})
