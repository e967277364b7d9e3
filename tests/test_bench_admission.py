"""The admission benchmark: documents that share no beginning, and figures that follow from the servers' states."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from benchmarks.admission import SERVERS, SIZES, did, hit_rate, summary
from common.bench_serving import documents, write_dataset
from common.measurement import MODEL, tokenizer
from rendering.admission_section import admission
from rendering.results import table
from rheo_sglang.config import RheoConfig


@pytest.mark.parametrize(("count", "tokens"), [(8, 1200), (96, 28000)])
def test_documents_are_as_long_as_asked_and_share_no_beginning(count: int, tokens: int) -> None:
    if not (MODEL / "tokenizer.json").exists():
        pytest.skip("SmolLM2 is not converted here")
    texts = documents(MODEL, count, tokens)
    assert len(texts) == count
    assert all(one[:64] != other[:64] for one, other in combinations(texts, 2))
    for text in texts[:: count // 4]:
        assert len(tokenizer(MODEL).encode(text).ids) == pytest.approx(tokens, rel=0.15)


def test_the_dataset_is_what_bench_serving_reads(tmp_path: Path) -> None:
    write_dataset(["a b", "c"], tmp_path / "d.json")
    rows = json.loads((tmp_path / "d.json").read_text())
    assert [row["conversations"][0]["value"] for row in rows] == ["a b", "c"]
    assert all(len(row["conversations"]) == 2 for row in rows)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("server", SERVERS)
def test_every_server_has_settings_that_are_allowed(size: str, server: str) -> None:
    assert RheoConfig(**{**SIZES[size].config, **SERVERS[server]}).admission in ("working_set", "off")


def state(requests: dict[str, tuple[float, int]], counters: dict[str, int] | None) -> dict:
    entries = [{"rid": rid, "hit_rate": rate, "samples": count} for rid, (rate, count) in requests.items()]
    admission = None if counters is None else {"counters": counters}
    return {"recorder": {"requests": entries}, "admission": admission}


def test_figures_of_a_run_are_of_its_requests_alone() -> None:
    before = state({"a": (0.5, 100)}, {"pause": 2, "shrink": 1})
    after = state({"a": (0.5, 100), "b": (1.0, 100), "c": (0.4, 300)}, {"pause": 5, "shrink": 1})
    assert hit_rate(before, after) == 0.55
    assert hit_rate(after, after) is None
    assert did(before, after) == {"pause": 3}
    assert did(state({}, None), state({}, None)) == {}


@pytest.mark.parametrize("machine", ["one NVIDIA H200, 16 cores", "2 cores of a CPU, 24 GiB DRAM, no GPU"])
def test_the_section_of_the_results_has_every_run(machine: str) -> None:
    run = {
        "output_throughput": 512.25,
        "median_tpot_ms": 7.5,
        "p95_tpot_ms": 8.5,
        "p99_tpot_ms": 9.5,
        "hit_rate": 0.9712,
        "working_sets_over_frames": 1.83,
        "controller": {"shrink": 2, "paused": 1},
    }
    runs = {"96": run, "8": {**run, "controller": {}}}
    result = {
        "machine": machine,
        "metrics": {
            "admission": runs,
            "off": {"8": run},
            "throughput_ratio_with_control": 0.987,
            "model": "a-model",
            "size": {"document_tokens": 1200, "answer_tokens": 96, "config": {"frame_pool_gib": 4}},
        },
    }
    text = admission(result, table, lambda found: "where it comes from")
    lines = [line for line in text.splitlines() if line.startswith(("| 8 ", "| 96 "))]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| 8", "by working set"],
        ["| 8", "off"],
        ["| 96", "by working set"],
    ]
    assert "shrink 2, paused 1" in lines[2] and "0.9712" in lines[2] and "1.83" in lines[2]
    assert ("0.987" in text) == ("no GPU" not in machine)


def test_ratios_are_of_concurrencies_that_both_servers_have_and_name_the_worst() -> None:
    def figures(throughput: float, p99: float) -> dict:
        return {"output_throughput": throughput, "p99_tpot_ms": p99}

    with_control = {"8": figures(90.0, 12.0), "16": figures(120.0, 5.0), "32": figures(1.0, 1.0)}
    found = {"admission": with_control, "off": {"8": figures(100.0, 10.0), "16": figures(100.0, 10.0)}}
    assert summary(found) == {
        "relative_throughput": {"8": 0.9, "16": 1.2},
        "throughput_ratio_with_control": 0.9,
        "relative_p99_tpot": {"8": 1.2, "16": 0.5},
        "p99_tpot_ratio_with_control": 1.2,
    }
    assert summary({"admission": with_control}) == {}
    assert summary({**found, "off": {}}) == {}
