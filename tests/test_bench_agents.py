"""The agents benchmark: sessions have the tokens asked for and only grow, memory is equal, figures are as named."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from benchmarks.agent_clients import Seen, figures, quantiles, summarise
from benchmarks.agents import SIZES, options_of, plan, ratios, size_of
from common.measurement import MODEL, tokenizer
from workloads.agent_sessions import (
    AFTER_ANSWER,
    AgentLoad,
    Encode,
    Files,
    agent_sessions,
    as_text,
    write_trace,
)

LOAD = AgentLoad(turns=4, first=600, tool=80, answer=16)
FRAME = 40
"""Most tokens that names and frames of messages add to a prompt."""


@pytest.fixture(scope="module")
def encode() -> Encode:
    if not (MODEL / "tokenizer.json").exists():
        pytest.skip("needs SmolLM2's tokenizer")
    return functools.partial(tokenizer(MODEL).encode, add_special_tokens=False)


def test_sessions_have_the_tokens_that_were_asked_for(encode: Encode) -> None:
    sessions = agent_sessions(encode, LOAD, 3)
    assert [len(turns) for turns in sessions] == [4] * 3
    for turns in sessions:
        tokens = [len(encode(as_text(messages)).ids) for messages in turns]
        assert LOAD.first - FRAME <= tokens[0] <= LOAD.first + FRAME
        assert all(LOAD.tool - FRAME <= count <= LOAD.tool + FRAME for count in tokens[1:])


def test_sessions_share_their_system_prompt_and_no_file(encode: Encode) -> None:
    one, other = (turns[0] for turns in agent_sessions(encode, LOAD, 2))
    assert one[0] == other[0]
    head = 200
    assert one[1]["content"][head : 2 * head] != other[1]["content"][head : 2 * head]
    assert agent_sessions(encode, LOAD, 2)[1][0] == other, "the same each time"


def test_tokens_do_not_depend_on_what_comes_after(encode: Encode) -> None:
    """Histories may be encoded piece by piece: what is new never merges with what was there."""
    first, second, *_ = agent_sessions(encode, LOAD, 1)[0]
    before, answer = as_text(first), "I read the file first."
    new = AFTER_ANSWER + as_text(second)
    whole = encode(before + answer + new).ids
    assert whole == encode(before).ids + encode(answer).ids + encode(new).ids


def test_files_go_on_where_they_were_cut(encode: Encode) -> None:
    whole, parts = Files(encode, 0.3), Files(encode, 0.3)
    text = whole.take(900)
    pieces = "".join(parts.take(300) for _ in range(3))
    assert text.startswith("$ cat lib/") and pieces[:500] == text[:500]
    assert abs(len(pieces) - len(text)) < FRAME, "a cut may fall into a token"


def test_the_trace_is_what_sglangs_loader_reads(encode: Encode, tmp_path: Path) -> None:
    loader = pytest.importorskip("sglang.benchmark.datasets.agentic_trace")
    sessions = agent_sessions(encode, LOAD, 3)
    write_trace(sessions, LOAD, tmp_path / "trace.json")
    rows = loader.AgenticTraceDataset(str(tmp_path / "trace.json"), 3, LOAD.answer, 0, None).load(None)
    assert [row.prompt for row in rows] == sessions
    assert {row.prompt_len for row in rows} == {LOAD.first}
    assert {row.output_len for row in rows} == {LOAD.answer}


def test_times_are_told_in_milliseconds() -> None:
    assert quantiles([0.001 * value for value in range(101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def seen(turn: int, ttft: float, cached: int) -> Seen:
    return Seen(turn, ttft, 0.01, 100 * turn, cached, 16)


def test_a_run_is_told_by_turn_and_as_a_whole() -> None:
    everything = [seen(1, 4.0, 0), seen(2, 1.0, 100), seen(1, 2.0, 0), seen(2, 3.0, 0)]
    found = summarise(everything, 8.0)
    assert found["output_tokens_per_s"] == 8.0 and found["turns_per_s"] == 0.5
    assert found["first"]["ttft_ms"]["p50"] == 3000.0 and found["later"]["ttft_ms"]["p50"] == 2000.0
    assert found["later"]["hit_rate"] == 0.25 and found["all"]["hit_rate"] == pytest.approx(1 / 6, abs=1e-4)
    assert found["by_turn"]["2"] == found["later"] == figures([one for one in everything if one.turn == 2])


def test_ratios_are_against_every_other_server() -> None:
    def run(rate: float, ttft: float, tpot: float) -> dict[str, object]:
        later = {
            "ttft_ms": {"p50": ttft, "p95": 2 * ttft, "p99": 3 * ttft**0.5},
            "tpot_ms": {"p50": tpot, "p99": tpot**2},
        }
        return {"output_tokens_per_s": rate, "later": later}

    found = {"fa3": run(10.0, 800.0, 2.0), "hicache": run(20.0, 400.0, 4.0), "rheo": run(40.0, 200.0, 2.0)}
    assert ratios(found) == {
        "throughput_vs_fa3": 4.0,
        "later_ttft_p50_vs_fa3": 0.25,
        "later_ttft_p95_vs_fa3": 0.25,
        "later_ttft_p99_vs_fa3": 0.5,
        "later_tpot_p50_vs_fa3": 1.0,
        "later_tpot_p99_vs_fa3": 1.0,
        "throughput_vs_hicache": 2.0,
        "later_ttft_p50_vs_hicache": 0.5,
        "later_ttft_p95_vs_hicache": 0.5,
        "later_ttft_p99_vs_hicache": 0.707,
        "later_tpot_p50_vs_hicache": 0.5,
        "later_tpot_p99_vs_hicache": 0.25,
    }
    assert ratios({"fa3": run(10.0, 800.0, 2.0)}) == {}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint's configuration, of Qwen3-8B's shape."""
    config = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "head_dim": 128,
        "num_key_value_heads": 8,
        "num_hidden_layers": 36,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("name", SIZES)
def test_all_sessions_have_four_times_the_pool(name: str, model: Path) -> None:
    size = size_of(options_of(["--size", name, "--kv-gib", "16"]))
    planned = plan(model, size, 4.0, {}, gpu=name != "cpu")
    tokens = planned.sessions * size.load.longest
    assert 4 * planned.pool_tokens <= tokens < 4 * planned.pool_tokens + size.load.longest


def test_servers_have_the_same_memory_and_room_for_every_session(model: Path) -> None:
    planned = plan(model, SIZES["8b"], 4.0, {"budget_ratio": 0.1}, gpu=True)
    lines = planned.servers
    assert list(lines) == ["fa3", "hicache", "rheo"]
    settings = json.loads(lines["rheo"][lines["rheo"].index("--rheo-config") + 1])
    needed = planned.sessions * SIZES["8b"].load.longest * 36 * 8 * 128 * 2 * 2
    assert settings["host_pool_gib"] * 2**30 > needed and settings["budget_ratio"] == 0.1
    gigabytes = int(lines["hicache"][lines["hicache"].index("--hicache-size") + 1])
    assert 0 <= gigabytes * 10**9 - settings["host_pool_gib"] * 2**30 < 10**9
    context = int(lines["fa3"][lines["fa3"].index("--context-length") + 1])
    assert SIZES["8b"].load.longest < context <= planned.pool_tokens


def test_a_session_that_outgrows_the_pool_is_refused(model: Path) -> None:
    size = size_of(options_of(["--size", "cpu", "--kv-tokens", "1000"]))
    with pytest.raises(ValueError, match="does not fit into 1000 tokens"):
        plan(model, size, 4.0, {}, gpu=False)
