"""The admission benchmark: documents that share no beginning, and figures that follow from the servers' states."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from benchmarks.admission import SERVERS, SIZES, did, documents, hit_rate, summary, write_dataset
from common.measurement import MODEL, tokenizer
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


def test_the_ratio_is_of_concurrencies_that_both_servers_have() -> None:
    def figures(throughput: float) -> dict:
        return {"output_throughput": throughput}

    found = {"admission": {"8": figures(90.0), "16": figures(120.0)}, "off": {"8": figures(100.0)}}
    assert summary(found) == {"relative_throughput": {"8": 0.9}, "worst": 0.9}
    assert summary({"admission": found["admission"]}) == {}
    assert summary({**found, "off": {}}) == {}
