"""The serving benchmark: memory is equal, and ratios compare what they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.serving import dense_tokens, engines, kv_bytes_of_a_token, ratios


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint's configuration, of Qwen2.5-Coder-1.5B's shape."""
    config = {
        "hidden_size": 1536,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "num_hidden_layers": 28,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_dense_pool_has_the_bytes_asked_for(model: Path) -> None:
    assert kv_bytes_of_a_token(model) == 2 * 2 * 128 * 2 * 28
    tokens = dense_tokens(model, 4.0)
    assert tokens * kv_bytes_of_a_token(model) <= 4 * 2**30 < (tokens + 1) * kv_bytes_of_a_token(model)


def test_both_dense_servers_have_the_same_pool(model: Path) -> None:
    lines = engines(model, 4.0, 2.5, {"budget_ratio": 0.1})
    pools = {lines[name][lines[name].index("--max-total-tokens") + 1] for name in ("fa3", "hicache")}
    assert pools == {str(dense_tokens(model, 4.0))}
    settings = json.loads(lines["rheo"][lines["rheo"].index("--rheo-config") + 1])
    assert settings["frame_pool_gib"] == 2.5
    assert settings["budget_ratio"] == 0.1


def test_ratios_are_of_output_tokens_and_of_answers_that_were_measured() -> None:
    def run(throughput: float) -> dict[str, float]:
        return {"output_throughput": throughput, "p99_itl_ms": 30.0, "median_tpot_ms": 10.0}

    found = {"fa3": {"400": run(100.0), "1500": run(50.0)}, "rheo": {"400": run(300.0)}}
    assert ratios(found, "coder", 4.0, [400, 1500]) == {
        "throughput_vs_fa3_coder_4gib_400": 3.0,
        "p99_gap_over_median_step_400": 3.0,
    }
