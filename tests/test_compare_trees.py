"""compare_trees: two trees of different layouts are run in turns, and what they measured is merged."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import compare_trees
from benchmarks.compare_trees import Tree, merged

BENCHMARK = """
import json, pathlib, sys
factor = {factor}
pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).write_text(json.dumps({{"metrics": {metrics}}}))
"""
KERNELS = '{{"score_us_bs1_8k": 2.0 * factor, "{attend}_us_bs1_8k": 4.0, "score_mb_bs1_8k": 1.0}}'
TPOT = (
    '{"weights": "random", sys.argv[2]: {"start_s": 1, "128k_bs1_cold": {"tpot_ms": 99},'
    ' "128k_bs1": {"tpot_ms": 5.0 * factor}}}'
)


def run(part: str, side: str, number: int, metrics: dict[str, object]) -> dict[str, object]:
    return {"part": part, "side": side, "round": number, "metrics": metrics}


def test_kernels_are_compared_by_round_under_their_new_names() -> None:
    found = merged(
        [
            run("kernels", "before", 0, {"attend_listed_us_bs4_128k": 10.0, "gone_us_bs1_8k": 1.0}),
            run("kernels", "after", 0, {"attend_dense_us_bs4_128k": 11.0, "fresh_us_bs1_8k": 1.0}),
            run("kernels", "after", 1, {"attend_dense_us_bs4_128k": 20.0}),
            run("kernels", "before", 1, {"attend_listed_us_bs4_128k": 20.0}),
            run("kernels", "before", 2, {"attend_listed_us_bs4_128k": 15.0}),
            run("kernels", "after", 2, {"attend_dense_us_bs4_128k": 15.9}),
        ]
    )
    assert found["attend_dense_bs4_128k_us_before"] == 15
    assert found["attend_dense_bs4_128k_us_after"] == 15.9
    assert (
        found["attend_dense_bs4_128k_ratio"]
        == found["kernels_slower_by_2_percent"]["attend_dense_bs4_128k_ratio"]
    )
    assert found["attend_dense_bs4_128k_ratio"] == pytest.approx(1.06)
    assert found["only_before"] == ["gone_bs1_8k"]
    assert found["only_after"] == ["fresh_bs1_8k"]


def test_tokens_are_compared_by_engine_context_and_batch() -> None:
    def metrics(one: float, four: float) -> dict[str, object]:
        return {"fa3": {"start_s": 3.0, "2k_bs1": {"tpot_ms": one}, "128k_bs4_auto": {"tpot_ms": four}}}

    found = merged([run("tpot", "after", 0, metrics(5.0, 9.0)), run("tpot", "before", 0, metrics(4.0, 10.0))])
    assert found["tpot_ratio_after_before"] == {"fa3/2k_bs1": 1.25, "fa3/128k_bs4_auto": 0.9, "median": 1.075}
    assert found["fa3/2k_bs1_tpot_ms_before"] == 4


def test_one_side_alone_gives_no_ratio() -> None:
    found = merged([run("tpot", "before", 0, {"fa3": {"2k_bs1": {"tpot_ms": 4.0}}})])
    assert found["tpot_ratio_after_before"] == {}
    assert found["only_before"] == ["fa3/2k_bs1"]


@pytest.fixture
def trees(tmp_path: Path) -> dict[str, Path]:
    """A tree of the old layout and one of this, whose benchmarks write fixed figures."""
    found = {}
    for side, factor, attend, name in [
        ("before", 1.0, "attend_listed", "scripts/bench_{}.py"),
        ("after", 1.5, "attend_dense", "scripts/benchmarks/{}.py"),
    ]:
        for part, metrics in [("kernels", KERNELS.format(attend=attend)), ("tpot", TPOT)]:
            file = tmp_path / side / name.format(part)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(BENCHMARK.format(factor=factor, metrics=metrics))
        found[side] = tmp_path / side
    return found


def arguments(trees: dict[str, Path], out: Path) -> list[str]:
    paths = ["--before-path", os.devnull, "--after-path", os.devnull]
    return [compare_trees.__file__, "--before", str(trees["before"]), *paths, "--out", str(out)]


def test_rounds_alternate_and_results_are_joined(
    trees: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "house.json"
    monkeypatch.setattr(compare_trees, "REPOSITORY", trees["after"])
    monkeypatch.setattr(sys, "argv", [*arguments(trees, out), "--kernel-rounds", "2"])
    assert compare_trees.main() == 0
    document = json.loads(out.read_text())
    assert [(one["round"], one["side"]) for one in document["runs"][:4]] == [
        (0, "before"),
        (0, "after"),
        (1, "after"),
        (1, "before"),
    ]
    metrics = document["metrics"]
    assert (metrics["score_bs1_8k_us_before"], metrics["score_bs1_8k_us_after"]) == (2, 3)
    assert metrics["attend_dense_bs1_8k_ratio"] == 1
    assert metrics["tpot_ratio_after_before"] == {
        **{f"{engine}/128k_bs1": 1.5 for engine in list(compare_trees.TPOT_CASES)[:2]},
        "median": 1.5,
    }
    both = tmp_path / "both.json"
    monkeypatch.setattr(
        sys, "argv", [compare_trees.__file__, "--onto", str(out), str(out), "--out", str(both)]
    )
    assert compare_trees.main() == 0
    joined = json.loads(both.read_text())
    assert joined["metrics"] == metrics
    assert len(joined["runs"]) == 2 * len(document["runs"])
    assert len({(one["round"], one["side"]) for one in joined["runs"]}) == len(joined["runs"])


def test_a_part_that_fails_leaves_the_others_results(
    trees: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trees["before"] / "scripts" / "bench_tpot.py").write_text("raise SystemExit(7)")
    out = tmp_path / "house.json"
    monkeypatch.setattr(compare_trees, "REPOSITORY", trees["after"])
    monkeypatch.setattr(
        sys, "argv", [*arguments(trees, out), "--kernel-rounds", "1", "--engines", "resident"]
    )
    assert compare_trees.main() == 1
    document = json.loads(out.read_text())
    assert document["failed"] == ["round 1, resident, before: tpot left no result; exit status: 7"]
    assert document["metrics"]["score_bs1_8k_ratio"] == 1.5
    assert document["metrics"]["only_after"] == ["resident/128k_bs1"]


def test_a_run_that_hangs_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "bench_kernels.py"
    script.parent.mkdir()
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match="none after 1 s"):
        Tree(tmp_path, os.devnull).run("kernels", (), 1.0)
