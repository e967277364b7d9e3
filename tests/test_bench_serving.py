"""The serving benchmark: memory is equal, ratios compare what they name, and variants differ in what was asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.serving import dense_tokens, engines, kv_bytes_of_a_token, ratios, variants


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


def run(throughput: float) -> dict[str, float]:
    return {"output_throughput": throughput, "p99_itl_ms": 30.0, "median_tpot_ms": 10.0}


def test_ratios_are_of_output_tokens_and_of_answers_that_were_measured() -> None:
    found = {"fa3": {"400": run(100.0), "1500": run(50.0)}, "rheo": {"400": run(300.0)}}
    assert ratios(found, "coder", 4.0, [400, 1500]) == {
        "throughput_vs_fa3_coder_4gib_400": 3.0,
        "p99_gap_over_median_step_400": 3.0,
    }


def test_a_variant_is_compared_with_rheo_as_well_and_needs_no_other_engine() -> None:
    found = {"rheo": {"1500": run(200.0)}, "rheo_fp8": {"1500": run(300.0)}}
    assert ratios(found, "coder", 4.0, [1500]) == {
        "p99_gap_over_median_step_1500": 3.0,
        "throughput_fp8_vs_rheo_coder_4gib_1500": 1.5,
        "p99_gap_over_median_step_fp8_1500": 3.0,
    }
    found["fa3"] = {"1500": run(100.0)}
    both = ratios(found, "coder", 4.0, [1500])
    assert both["throughput_fp8_vs_fa3_coder_4gib_1500"] == 3.0
    assert both["throughput_vs_fa3_coder_4gib_1500"] == 2.0


def asked(model: Path, *given: tuple[str, str, str]) -> argparse.Namespace:
    return argparse.Namespace(model=model, gib=4.0, frames_gib=2.5, variant=[list(one) for one in given])


def test_a_variant_is_rheo_with_its_own_settings_and_arguments_behind(model: Path) -> None:
    line = variants(
        asked(model, ("rheo_fp8", '{"residency_bonus": 1.0}', "--kv-cache-dtype fp8_e4m3")),
        {"residency_bonus": 0.5, "cpu_threads": 8},
    )["rheo_fp8"]
    plain = engines(model, 4.0, 2.5, {"residency_bonus": 1.0, "cpu_threads": 8})["rheo"]
    assert line == [*plain, "--kv-cache-dtype", "fp8_e4m3"]


def test_a_variant_that_ratios_would_not_find_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="--variant fp8: allowed are names that begin with rheo_"):
        variants(asked(model, ("fp8", "{}", "")), {})
