"""Replays against a brute-force simulator, a bound that nothing exceeds, and what commands print and refuse."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from rheo_sglang.cli import main
from rheo_sglang.replay.compact import Replayable, compact
from rheo_sglang.replay.heatmap import HeatMap, Region, heat_maps
from rheo_sglang.replay.heatmap_plot import overlay
from rheo_sglang.replay.sweep import BELADY, Case, replay
from rheo_sglang.tiering import POLICIES
from rheo_sglang.traces import Trace
from rheo_sglang.traces.events import Noted, Step
from rheo_sglang.traces.writer import TraceWriter

PAGE_SIZE, LAYERS, HEADS, SELECTED, PAGES = 16, 2, 2, 4, 12
ROWS = LAYERS * HEADS
CONFIG = {
    "budget": "fixed",
    "budget_ratio": 0.3,
    "extensions": [],
    "sink_pages": 1,
    "window_pages": 1,
    "dense_threshold": 0,
    "importance_alpha": 0.3,
}
MANIFEST = {
    "schema": 1,
    "model": "model",
    "page_size": PAGE_SIZE,
    "layers": LAYERS,
    "first_layer": 0,
    "kv_heads": HEADS,
    "frames": 6,
    "context_len": 512,
    "config": CONFIG,
}


def steps(count: int, seed: int, pages: int = PAGES) -> list[Step]:
    """One request, whose pages come and go in the selection; its tail is the last page, and it does not grow."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(LAYERS, 1, HEADS, pages)).astype(np.float32)
    found = []
    for number in range(1, count + 1):
        scores = 0.8 * scores + 0.6 * draw.normal(size=scores.shape).astype(np.float32)
        keyed = scores.copy()
        keyed[..., -1] = np.inf
        selected = np.argsort(-keyed, axis=3)[..., :SELECTED].astype(np.int32)
        chosen = np.full((LAYERS, 1, HEADS), SELECTED, dtype=np.int32)
        tokens = np.array([pages * PAGE_SIZE - 1], dtype=np.int32)
        lists = np.arange(1, pages + 1, dtype=np.int32)[None]
        found.append(Step(number, ["r"], tokens, lists, scores, selected, 0 * chosen, chosen))
    return found


def replayable(events: list[Step | Noted], pages: int = PAGES) -> Replayable:
    return Replayable(list(events), pages + 1, LAYERS, HEADS, PAGE_SIZE, SELECTED)


def selections(found: list[Step]) -> list[list[set[int]]]:
    """Pages that each step selects, by row."""
    wanted = []
    for step in found:
        assert step.selected is not None and step.num_selected is not None
        index = step.selected[..., : step.num_selected.max()].reshape(ROWS, -1)
        wanted.append([set(step.pages[0][row].tolist()) for row in index])
    return wanted


def simulate_lru(found: list[Step], frames: int, pages: int = PAGES) -> int:
    """Hits of LRU, page by page. Ties break any way, so a page that shares its last use with others counts for none."""
    hits = 0
    for row in range(ROWS):
        resident: dict[int, int] = {}
        for time, wanted in enumerate(one[row] for one in selections(found)):
            tail = pages
            if tail not in resident and len(resident) == frames:
                del resident[min(resident, key=lambda page: (resident[page], page))]
            resident.setdefault(tail, -1)
            hits += len(wanted & resident.keys())
            missed = sorted(wanted - resident.keys())
            for page in wanted & resident.keys():
                resident[page] = time
            for page in missed:
                if len(resident) == frames:
                    others = [one for one in resident if one not in wanted]
                    if not others:
                        continue
                    del resident[min(others, key=lambda one: (resident[one], one))]
                resident[page] = time
    return hits


def single_use_steps(count: int, seed: int) -> list[Step]:
    """Steps that select the tail and one other page, so that no two pages share their last use."""
    found = steps(count, seed)
    two = np.full((LAYERS, 1, HEADS), 2, dtype=np.int32)
    return [Step(*list(vars(step).values())[:6], 0 * two, two) for step in found]


@given(st.integers(0, 10**6), st.integers(3, 9))
@settings(max_examples=5, deadline=None)
def test_lru_replays_as_a_simulator_does_page_by_page(seed: int, frames: int) -> None:
    found = single_use_steps(40, seed)
    outcome = replay(replayable(found), Case("lru", None), frames, 0.3)
    assert outcome.hits.sum() == simulate_lru(found, frames)
    assert outcome.selected.sum() == 40 * ROWS * 2


def best_by_search(wanted: list[set[int]], frames: int, tail: int) -> int:
    """Most hits of one row, by trying every set of pages to keep after every step."""
    states = {frozenset[int](): 0}
    for step in wanted:
        following: dict[frozenset[int], int] = {}
        for resident, hits in states.items():
            claimed = resident | {tail}
            for held in [claimed] if len(claimed) <= frames else [claimed - {one} for one in resident]:
                scored = hits + len(held & step)
                pool = sorted(held | step)
                for kept in itertools.combinations(pool, min(frames, len(pool))):
                    key = frozenset(kept)
                    following[key] = max(following.get(key, -1), scored)
        states = following
    return max(states.values())


@given(st.integers(0, 10**6), st.integers(2, 4))
@settings(max_examples=5, deadline=None)
def test_belady_is_the_optimum_that_a_search_finds(seed: int, frames: int) -> None:
    found = steps(9, seed, pages=7)
    outcome = replay(replayable(found, 7), Case(BELADY, None), frames, 0.3)
    by_row = outcome.hits[0].tolist()
    expected = [best_by_search([one[row] for one in selections(found)], frames, 7) for row in range(ROWS)]
    assert by_row == expected


@given(st.integers(0, 10**6), st.integers(1, 14), st.sampled_from([0, 3, 64]))
@settings(max_examples=5, deadline=None)
def test_no_policy_hits_more_than_belady(seed: int, frames: int, runners_up: int) -> None:
    found: list[Step | Noted] = list(steps(20, seed))
    gone = np.array([2, 5, 7], dtype=np.int32)
    found.insert(17, Noted("free", gone, gone[:0]))
    trace = replayable(found)
    most = replay(trace, Case(BELADY, None, runners_up), frames, 0.3).hits
    for policy in POLICIES.names():
        hits = replay(trace, Case(policy, None, runners_up), frames, 0.3).hits
        assert (hits <= most).all(), policy


def test_pages_that_were_freed_are_missed_once_more() -> None:
    found: list[Step | Noted] = [*steps(20, 3)]
    everything = np.arange(1, PAGES + 1, dtype=np.int32)
    kept = replay(replayable(found), Case("lru", None), PAGES, 0.3)
    found.insert(10, Noted("free", everything, everything[:0]))
    again = replay(replayable(found), Case("lru", None), PAGES, 0.3)
    before, after = selections(steps(20, 3))[:10], selections(steps(20, 3))[10:]
    twice = sum(
        len(set().union(*(one[row] for one in before)) & set().union(*(one[row] for one in after)) - {PAGES})
        for row in range(ROWS)
    )
    assert kept.hits.sum() - again.hits.sum() == twice > 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = TraceWriter(tmp_path / "trace", MANIFEST, 2**30)
    for step in steps(30, 1):
        writer.offer(lambda step=step: step, 0)  # type: ignore[misc]
    writer.close()
    return tmp_path / "trace"


def test_another_budget_selects_the_best_scored_pages_anew(folder: Path) -> None:
    trace = Trace(folder)
    chosen = compact(trace, budget=0.5)
    for expected, event in zip(steps(30, 1), chosen.events, strict=True):
        assert isinstance(event, Step) and event.selected is not None and expected.scores is not None
        assert (event.num_selected == 6).all()
        keyed = expected.scores[:, 0].copy()
        keyed[..., [0, -1]] = np.inf
        best = np.sort(np.argsort(-keyed, axis=2)[..., :6], axis=2)
        np.testing.assert_array_equal(np.sort(event.selected[:, 0], axis=2), best)
    assert chosen.largest == 6


def test_a_piped_table_has_all_of_its_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--capacities", "1.25,1.5,2,2.5", "--processes", "1"]
    assert main(["replay", str(folder), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert all(name in shown for name in POLICIES.names())


def test_replay_prints_a_table_and_writes_json_and_a_plot(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "plot.svg"
    arguments = ["replay", str(folder), "--policies", "lru,predicted,belady", "--capacities", "server,1.25"]
    arguments += ["--runners-up", "0,8", "--json", str(out), "--plot", str(plot), "--processes", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "server (6)" in printed and "1.25x (5)" in printed and "predicted" in printed
    entries = json.loads(out.read_text())["replays"]
    assert len(entries) == 3 * 2 * 2
    for entry in entries:
        frames, case = entry["frames"], Case(entry["policy"], None, entry["runners_up"])
        found = replay(compact(Trace(folder)), case, frames, 0.3)
        assert entry["page_hit_rate"] == pytest.approx(found.page_hit_rate, abs=1e-5)
        low, high = entry["interval"]
        assert low <= entry["page_hit_rate"] <= high
        if entry["policy"] == "predicted" and entry["of_the_way"] is not None:
            assert entry["of_the_way"] <= 1
    assert plot.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--policies", "lru,best"], "--policies='best' is not supported; allowed: all, or "),
        (
            ["--capacities", "0.5"],
            "--capacities='0.5' is not supported; allowed: server, or numbers of at least 1",
        ),
        (
            ["--budgets", "2"],
            "--budgets='2' is not supported; allowed: traced, or numbers above 0 and at most 1",
        ),
        (["--runners-up", "-1"], "--runners-up='-1' is not supported; allowed: whole numbers of at least 0"),
        (["--processes", "x"], "--processes='x' is not supported; allowed: a whole number from 1 to 256"),
        (["--plot", "a.pdf"], "--plot='a.pdf' is not supported; allowed: .png or .svg files"),
        (["--json", "nowhere/a.json"], "nowhere/a.json cannot be written: nowhere is no folder"),
    ],
)
def test_bad_arguments_of_replay_are_refused_in_one_sentence(
    arguments: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(folder), *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"rheo replay: error: {sentence}") and errors.count("\n") == 1


@pytest.mark.parametrize("command", ["replay", "heatmap"])
def test_a_folder_without_a_trace_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"rheo {command}: error: {tmp_path} is no trace: it has no _trace.json that can be read\n"
    )


def expected_map(layer: int, head: int) -> HeatMap:
    found = steps(30, 1)
    shape = len(found), PAGES
    log_share, region, chosen = np.zeros(shape), np.zeros(shape, dtype=np.int8), np.zeros(shape)
    for row, step in enumerate(found):
        assert step.scores is not None and step.selected is not None
        scores = step.scores[layer, 0, head].astype(np.float64)
        log_share[row] = scores - np.log(np.exp(scores).sum())
        chosen[row, step.selected[layer, 0, head]] = 1
        region[row] = np.where(chosen[row] > 0, Region.RETRIEVED, Region.LEFT_OUT)
        region[row, 0], region[row, -1] = Region.SINK, Region.WINDOW
    return HeatMap("r", np.arange(1, 31), log_share, chosen, region)


def test_a_heat_map_has_shares_and_regions_of_a_layer_and_head(folder: Path) -> None:
    (found,) = heat_maps(Trace(folder), "r", [(slice(1, 2), slice(0, 1))])
    expected = expected_map(1, 0)
    np.testing.assert_allclose(found.log_share, expected.log_share, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.region, expected.region)
    np.testing.assert_array_equal(found.selected, expected.selected)
    assert found.steps.tolist() == expected.steps.tolist()


def test_a_heat_map_of_all_layers_and_heads_has_their_means(folder: Path) -> None:
    (found,) = heat_maps(Trace(folder), "r", [(slice(0, LAYERS), slice(0, HEADS))])
    parts = [expected_map(layer, head) for layer, head in itertools.product(range(LAYERS), range(HEADS))]
    mean = np.log(np.mean([np.exp(part.log_share) for part in parts], axis=0))
    np.testing.assert_allclose(found.log_share, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.selected, np.mean([part.selected for part in parts], axis=0), atol=1e-6)
    retrieved = np.any([part.region == Region.RETRIEVED for part in parts], axis=0)
    np.testing.assert_array_equal(found.region == Region.RETRIEVED, retrieved)


def test_the_regions_of_a_heat_map_are_drawn_in_their_colours(folder: Path) -> None:
    (found,) = heat_maps(Trace(folder), "r", [(slice(0, 1), slice(0, 1))])
    drawn = overlay(found).transpose(1, 0, 2)
    for region in (Region.SINK, Region.WINDOW, Region.RETRIEVED):
        marked = drawn[found.region == region]
        assert len(marked) and len(np.unique(marked[:, :3], axis=0)) == 1
        assert (marked[:, 3] > 0.5).all()
    assert (drawn[found.region == Region.LEFT_OUT][:, 3] == 0).all()
    colours = {tuple(drawn[found.region == region][0, :3]) for region in (1, 2, 3)}
    assert len(colours) == 3


def test_heatmap_writes_a_picture_and_refuses_bad_arguments(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.png"
    assert main(["heatmap", str(folder), "--out", str(out), "--each", "layer"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{out}: 30 steps of r\n"
    for arguments, sentence in (
        (["--layer", "9"], "--layer=9 is not supported; allowed: 0 to 1"),
        (["--out", "map.pdf"], "--out='map.pdf' is not supported; allowed: .png or .svg files"),
        (["--request", "none"], f"{folder} has no step of request 'none' that selects pages"),
    ):
        assert main(["heatmap", str(folder), *arguments]) == 2
        assert capsys.readouterr().err == f"rheo heatmap: error: {sentence}\n"
