"""The benchmarks of whole engines: prompts, figures, ratios, and results that grow."""

from __future__ import annotations

import json
import os
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ttft import ENGINES, LENGTHS, LONGEST, MARGIN, PREFIX_TOKENS, ratios, summary
from common.engine_benchmark import Answer, ResultFile, random_prompt, run_kept
from common.measurement import SCRIPTS

RHEO, DENSE, CACHED = "rheo", "fa3", "hicache"


def answered(ttft: float, cached: int = 0) -> Answer:
    return Answer([ttft, ttft + 0.01, ttft + 0.04], {"cached_tokens": cached})


def test_prompts_share_nothing_and_are_the_same_again() -> None:
    prompts = [random_prompt(f"8k {row}", 4096) for row in range(4)]
    assert all(one[:2] != other[:2] for one, other in combinations(prompts, 2))
    assert prompts[2] == random_prompt("8k 2", 4096)
    assert random_prompt("8k 2", 5000)[:4096] == prompts[2]
    assert all(1000 <= token < 100000 for token in prompts[0])


def test_gaps_are_those_between_the_last_tokens() -> None:
    found = Answer([5.0, 5.5, 5.51, 5.53, 5.56], {"cached_tokens": 3})
    assert found.ttft_s == 5.0
    assert found.gaps_ms(3) == pytest.approx([10, 20, 30])
    assert found.tpot_ms(3) == pytest.approx(20)
    assert found.cached_tokens == 3


def test_the_first_prompt_only_warms_up() -> None:
    found = summary([answered(100.0), answered(4.0, 1), answered(1.0, 2), answered(2.0, 3)], 8000)
    assert found["ttft_s"] == 2.0
    assert found["tokens_per_s"] == 4000
    assert found["ttft_each_s"] == [4.0, 1.0, 2.0]
    assert found["ttft_warm_up_s"] == 100.0
    assert found["cached_tokens"] == [1, 2, 3]


def test_ratios_are_rheo_over_the_others() -> None:
    metrics: dict[str, Any] = {
        "weights": "random",
        DENSE: {
            "start_s": 80,
            "cold_8k": {"tokens_per_s": 100.0},
            "cold_128k": {"tokens_per_s": 50.0},
            "prefix_recomputed": {"ttft_s": 10.0},
            "prefix_resident": {"ttft_s": 1.0},
        },
        RHEO: {"cold_8k": {"tokens_per_s": 90.0}, "prefix_dram": {"ttft_s": 2.0}},
        CACHED: {"cold_8k": {"tokens_per_s": 80.0}, "prefix_dram": {"ttft_s": 4.0}},
        "hicache-direct": {"prefix_dram": {"ttft_s": 2.5}},
    }
    assert ratios(metrics) == {
        "throughput_ratio_8k": 0.9,
        "throughput_ratio_hicache_8k": 0.8,
        "prefix_from_dram_vs_recompute_128k": 0.2,
        "prefix_from_dram_vs_hbm_128k": 2.0,
        "prefix_from_dram_vs_hicache_128k": 0.8,
    }


def test_ratios_of_what_was_not_measured_are_left_out() -> None:
    assert ratios({}) == {}
    assert ratios({DENSE: {"start_s": 1.0}, RHEO: {"prefix_dram": {"ttft_s": 2.0}}}) == {}


@pytest.mark.parametrize("name", [name for name in ENGINES if name.startswith(CACHED)])
def test_hicache_has_room_for_one_longest_prompt_in_hbm_and_for_the_prefix_in_dram(name: str) -> None:
    arguments = ENGINES[name].arguments
    device, whole = arguments["max_total_tokens"], LONGEST - MARGIN
    assert whole < device < whole + PREFIX_TOKENS // 10
    in_dram = arguments["hicache_ratio"] * device
    assert in_dram >= PREFIX_TOKENS + whole + (whole - PREFIX_TOKENS)
    assert in_dram == ENGINES[RHEO].arguments["max_total_tokens"]


def test_rheo_has_frames_for_a_tenth_of_the_longest_prompt() -> None:
    config = ENGINES[RHEO].config
    assert config is not None
    assert config["frame_pool_tokens"] == LENGTHS["128k"] // 10


def test_what_a_process_found_is_known_before_it_ends(tmp_path: Path) -> None:
    kept, seen = tmp_path / "kept.json", tmp_path / "seen"
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from common.engine_benchmark import keep\n"
        "keep({'step': 0}, Path(sys.argv[1]))\n"
        "print('first', flush=True)\n"
        "end = time.monotonic() + 20\n"
        "while not Path(sys.argv[2]).exists() and time.monotonic() < end:\n"
        "    time.sleep(0.01)\n"
        "keep({'step': 1, 'was_seen': Path(sys.argv[2]).exists()}, Path(sys.argv[1]))\n"
        "sys.exit(3)\n"
    )
    found: list[dict[str, Any]] = []
    lines: list[str] = []

    def note(so_far: dict[str, Any]) -> None:
        found.append(so_far)
        seen.touch()

    command = [sys.executable, "-c", script, str(kept), str(seen)]
    assert run_kept(command, {**os.environ, "PYTHONPATH": str(SCRIPTS)}, kept, note, lines.append) == 3
    assert lines == ["first\n"]
    assert found == [{"step": 0}, {"step": 1, "was_seen": True}]


def test_a_process_that_found_nothing_tells_nothing(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    command = [sys.executable, "-c", "raise SystemExit(5)"]
    assert run_kept(command, dict(os.environ), tmp_path / "kept.json", found.append) == 5
    assert found == []


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "benchmarks" / "ttft.py"), "--engines", "rheo"])


@pytest.mark.usefixtures("script")
def test_a_result_keeps_what_an_earlier_one_of_the_same_gpu_has(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    result = ResultFile("ttft_gpu", first, "one GPU, 8 GiB DRAM")
    result.metrics |= {DENSE: {"a": 1}, RHEO: {"a": 1}}
    result.write({"ratio": 1.0})
    later = ResultFile("ttft_gpu", second, "one GPU, 9 GiB DRAM", onto=first)
    later.metrics[RHEO] = {"a": 2}
    later.write({"ratio": 2.0})
    document = json.loads(second.read_text())
    assert document["metrics"] == {"ratio": 2.0, DENSE: {"a": 1}, RHEO: {"a": 2}}
    assert document["command"].count("python -m benchmarks.ttft --engines rheo") == 2


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(
    ("name", "machine"), [("tpot_gpu", "one GPU, 8 cores"), ("ttft_gpu", "another GPU, 8 cores")]
)
def test_a_result_takes_nothing_from_another_benchmark_or_gpu(
    tmp_path: Path, name: str, machine: str
) -> None:
    first = tmp_path / "first.json"
    ResultFile(name, first, machine).write({})
    with pytest.raises(ValueError, match=r"--onto: .* is not supported; allowed: "):
        ResultFile("ttft_gpu", tmp_path / "second.json", "one GPU, 8 cores", onto=first)
