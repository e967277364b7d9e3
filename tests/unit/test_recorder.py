"""The recorder counts every decode iteration of every request, layer and KV head once, and files it right."""

from __future__ import annotations

import json
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rheo_sglang.recorder import Recorder
from rheo_sglang.recorder.ended import KEPT_REQUESTS
from rheo_sglang.recorder.recorder import ENDED_AFTER, GIVEN_BACK_TOGETHER

LAYERS, HEADS = 2, 3


def make_recorder(
    with_mass: bool = False, rows: int = 6, with_coverage: bool = False, with_growth: bool = False
) -> Recorder:
    return Recorder(rows, LAYERS, HEADS, "cpu", with_mass, with_coverage, with_growth)


def step(
    recorder: Recorder,
    rids: list[str],
    hits: list[list[list[int]]],
    selected: list[int],
    listed: list[int] | None = None,
) -> torch.Tensor:
    """One decode step: ``hits[request][layer][head]`` of ``selected[request]`` of ``listed[request]`` pages each."""
    rows = recorder.begin_step(rids, torch.tensor(listed or selected))
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
    assert not {"mass_covered", "estimated_coverage"} & report["overall"].keys()


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
    assert rids == [f"r{number}" for number in range(10, KEPT_REQUESTS + 11)], (
        "256 that ended, and one that runs"
    )


def test_an_empty_recorder_reports_no_samples() -> None:
    recorder = make_recorder()
    report = recorder.report()
    assert report["requests"] == []
    assert report["overall"] == {
        "samples": 0,
        "hit_rate": None,
        "page_hit_rate": None,
        "selected_share": None,
        "per_layer": [],
        "per_head": [],
    }


@pytest.mark.parametrize("with_mass", [False, True])
def test_a_report_survives_json(with_mass: bool) -> None:
    recorder = make_recorder(with_mass)
    step(recorder, ["a", "b"], [[[1] * HEADS] * LAYERS] * 2, [3, 2])
    report = recorder.report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_share_of_selected_pages_is_what_the_budget_allowed() -> None:
    recorder = make_recorder()
    nothing = [[[0] * HEADS] * LAYERS]
    step(recorder, ["a", "b"], nothing * 2, [4, 2], listed=[40, 2])
    step(recorder, ["a"], nothing, [6], listed=[60])
    report = recorder.report()
    assert by_rid(report)["a"]["selected_share"] == 0.1
    assert by_rid(report)["b"]["selected_share"] == 1.0
    assert report["overall"]["selected_share"] == round(12 / 102, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_mass_that_is_not_finite_reaches_no_average_and_is_counted(value: float) -> None:
    """Also not the next owner of the request's row, and not after the request ended."""
    recorder = make_recorder(with_mass=True, rows=2)
    full = [[[1] * HEADS] * LAYERS]
    rows = step(recorder, ["bad", "good"], full * 2, [2, 2])
    for layer in range(LAYERS):
        recorder.cover(layer, rows, torch.tensor([[value] * HEADS, [0.5] * HEADS]))
    rows = step(recorder, ["half", "next"], full * 2, [2, 2])
    for layer in range(LAYERS):
        recorder.cover(layer, rows, torch.tensor([[value, 0.25, 0.25], [0.75] * HEADS]))
    report = json.loads(json.dumps(recorder.report(), allow_nan=False))
    shown = {rid: (entry["mass_covered"], entry["mass_not_finite"]) for rid, entry in by_rid(report).items()}
    assert shown == {"bad": (None, 6), "good": (0.5, 0), "half": (0.25, 2), "next": (0.75, 0)}
    assert report["overall"]["mass_covered"] == round((6 * 0.5 + 4 * 0.25 + 6 * 0.75) / 16, 4)
    assert report["overall"]["mass_not_finite"] == 8


def cover(recorder: Recorder, rids: list[str], shares: list[list[float]]) -> None:
    """One decode step in which ``shares[request][head]`` of the attention is on selected pages, in every layer."""
    rows = recorder.begin_step(rids, torch.tensor([8] * len(rids)))
    pages = torch.ones(len(rids), HEADS, dtype=torch.int32)
    for layer in range(LAYERS):
        recorder.count(layer, rows, pages, pages, torch.tensor(shares))


def test_estimated_coverage_is_a_mean_over_samples_as_the_hit_rate_is() -> None:
    recorder = make_recorder(rows=2, with_coverage=True)
    assert recorder.report()["overall"]["estimated_coverage"] is None
    cover(recorder, ["a", "b"], [[0.5, 0.75, 1.0], [0.25] * HEADS])
    cover(recorder, ["a"], [[0.5] * HEADS])
    cover(recorder, ["a"], [[0.5] * HEADS])
    cover(recorder, ["a", "in-the-row-of-b"], [[0.75] * HEADS, [0.125] * HEADS])
    report = recorder.report()
    shown = {rid: entry["estimated_coverage"] for rid, entry in by_rid(report).items()}
    assert shown == {"a": 0.625, "b": 0.25, "in-the-row-of-b": 0.125}
    assert report["overall"]["estimated_coverage"] == round((4 * 0.625 + 0.25 + 0.125) / 6, 4)


def test_a_coverage_that_is_not_finite_is_left_out_with_its_request() -> None:
    recorder = make_recorder(rows=2, with_coverage=True)
    cover(recorder, ["bad", "good"], [[float("nan"), 0.5, 0.5], [0.5] * HEADS])
    cover(recorder, ["next", "good"], [[0.25] * HEADS, [0.5] * HEADS])
    report = json.loads(json.dumps(recorder.report(), allow_nan=False))
    shown = {rid: entry["estimated_coverage"] for rid, entry in by_rid(report).items()}
    assert shown == {"bad": None, "good": 0.5, "next": 0.25}
    assert report["overall"]["estimated_coverage"] == round((2 * 0.5 + 0.25) / 3, 4)


def grow(recorder: Recorder, rids: list[str], pages: list[list[int]]) -> None:
    """One decode step in which ``pages[request][head]`` more than the budget are allowed, in every layer."""
    rows = recorder.begin_step(rids, torch.tensor([8] * len(rids)))
    more = torch.tensor(pages)
    for layer in range(LAYERS):
        growth = recorder.growth(layer, rows)
        assert growth is not None
        growth.samples.index_add_(0, growth.slots, (more > 0).int())
        growth.pages.index_add_(0, growth.slots, more)


def test_budgets_that_grew_are_counted_by_sample_and_in_pages() -> None:
    """Also once a request gave its row away."""
    recorder = make_recorder(rows=2, with_growth=True)
    assert recorder.report()["overall"]["grown_share"] is None
    grow(recorder, ["a", "b"], [[4, 0, 5], [0] * HEADS])
    grow(recorder, ["a"], [[0] * HEADS])
    grow(recorder, ["a", "in-the-row-of-b"], [[3] * HEADS, [1, 0, 0]])
    report = recorder.report()
    shown = {rid: (entry["grown_share"], entry["grown_pages"]) for rid, entry in by_rid(report).items()}
    assert shown == {"a": (round(5 / 9, 4), 2.0), "b": (0.0, 0.0), "in-the-row-of-b": (0.3333, 0.3333)}
    assert report["overall"]["grown_share"] == round(6 / 15, 4)
    assert report["overall"]["grown_pages"] == round(19 / 15, 4)
    assert make_recorder().growth(0, torch.zeros(1, dtype=torch.int64)) is None
    assert "grown_share" not in make_recorder().report()["overall"]


def test_padding_of_a_batch_counts_for_no_request() -> None:
    recorder = make_recorder(rows=2, with_coverage=True)
    assert recorder.counts.coverage is not None
    for rids, padded in ((["a"], 4), (["a"], 2), (["a", "b"], 4), (["a", "b"], 0), (["c", "b"], 3)):
        rows = recorder.begin_step(rids, torch.tensor([8] * len(rids)), padded)
        assert len(rows) == max(padded, len(rids))
        assert len(set(rows[: len(rids)].tolist()) - {recorder.padding_row}) == len(rids)
        assert rows[len(rids) :].eq(recorder.padding_row).all()
        live = torch.arange(len(rows))[:, None, None] < len(rids)
        recorder.counts.coverage.index_put_((rows,), torch.where(live, 0.5, 1.0), accumulate=True)
    shown = {rid: entry["estimated_coverage"] for rid, entry in by_rid(recorder.report()).items()}
    assert shown == {"a": 0.5, "b": 0.5, "c": 0.5}


class CountOperations(TorchDispatchMode):
    """How many tensor operations ran; each is a launch or a copy on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("requests", "steps_each"), [(2300, 1), (340, 18)])
def test_a_report_costs_the_same_however_many_requests_ended(requests: int, steps_each: int) -> None:
    """For example 2,300 short requests over 2,048 rows: rows are given back, and no request is copied alone."""
    recorder = make_recorder(with_mass=True, rows=2048)
    costs = {}
    for number in range(requests):
        for _ in range(steps_each):
            recorder.begin_step(["stays", f"r{number}"], torch.tensor([2, 2]))
        if number in (3, 300, requests - 1):
            with CountOperations() as operations:
                report = recorder.report()
            costs[number] = operations.count
            assert len(report["requests"]) == min(number, KEPT_REQUESTS) + 2
            assert by_rid(report)["stays"]["iterations"] == (number + 1) * steps_each
    assert len(set(costs.values())) == 1, costs
    assert len(recorder._row_of) <= 2 + ENDED_AFTER + GIVEN_BACK_TOGETHER


def test_a_report_changes_nothing() -> None:
    recorder = make_recorder(with_mass=True, rows=4, with_coverage=True, with_growth=True)
    full = [[[1] * HEADS] * LAYERS]
    for number in range(6):
        step(recorder, [f"r{number}", "stays"], full * 2, [2, 2])
    before = [counter.clone() for counter in recorder.counts if counter is not None]
    assert len(before) == len(recorder.counts)
    rows, free = dict(recorder._row_of), list(recorder._free)
    assert recorder.report() == recorder.report()
    assert all(torch.equal(one, other) for one, other in zip(before, recorder.counts, strict=True))
    assert (rows, free) == (recorder._row_of, recorder._free)


@pytest.mark.parametrize("seed", range(6))
def test_random_batches_are_counted_as_a_dictionary_counts_them(seed: int) -> None:
    """Batches that take turns, pauses, ends and few rows: every request that is still kept has its exact averages."""
    choose = random.Random(seed)
    rows = choose.choice([8, 20, 200])
    recorder = make_recorder(rows=rows)
    counted: dict[str, list[list[int]]] = {}
    alive = [f"r{number}" for number in range(choose.randint(2, 8))]
    for number in range(400):
        if choose.random() < 0.3:
            alive[choose.randrange(len(alive))] = f"r{10 + len(counted)}-{number}"
        batch = choose.sample(alive, choose.randint(1, len(alive)))
        hits = [[[choose.randint(0, 4) for _ in range(HEADS)] for _ in range(LAYERS)] for _ in batch]
        step(recorder, batch, hits, [4] * len(batch), listed=[16] * len(batch))
        for rid, request in zip(batch, hits, strict=True):
            counted.setdefault(rid, []).append(torch.tensor(request).flatten().tolist())
    assert len(counted) < KEPT_REQUESTS
    report = recorder.report()
    for entry in report["requests"]:
        samples = [hit / 4 for one in counted[entry["rid"]] for hit in one]
        if rows >= 20 or entry["iterations"] == len(counted[entry["rid"]]):
            assert entry["iterations"] == len(counted[entry["rid"]])
            assert entry["hit_rate"] == pytest.approx(sum(samples) / len(samples), abs=6e-5)
        assert entry["selected_share"] == 0.25
    assert {entry["rid"] for entry in report["requests"]} == counted.keys()
