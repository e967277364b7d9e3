"""The serving benchmark: memory is equal, ratios compare what they name, and variants differ in what was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.serving import (
    LOADS,
    dense_tokens,
    environment_of,
    kv_bytes_of_a_token,
    load_engines,
    options_of,
    ratios,
    served_model,
    server_arguments,
    variants,
)
from common.qwen3_shape import CONFIG
from locality.plugin import ENVIRONMENT

LOCALITY = "locality_smollm2"
CODER = LOADS["coder"]


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
    lines = load_engines(model, CODER, {"budget_ratio": 0.1})
    pools = {lines[name][lines[name].index("--max-total-tokens") + 1] for name in ("fa3", "hicache")}
    assert pools == {str(dense_tokens(model, 4.0))}
    settings = json.loads(lines["rheo"][lines["rheo"].index("--rheo-config") + 1])
    assert settings["frame_pool_gib"] == CODER.frames_gib
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


def test_a_variant_is_rheo_with_its_own_settings_and_arguments_behind(model: Path) -> None:
    asked = [["rheo_fp8", '{"residency_bonus": 1.0}', "--kv-cache-dtype fp8_e4m3"]]
    line = variants(asked, model, CODER, {"residency_bonus": 0.5, "cpu_threads": 8})["rheo_fp8"]
    plain = load_engines(model, CODER, {"residency_bonus": 1.0, "cpu_threads": 8})["rheo"]
    assert line == [*plain, "--kv-cache-dtype", "fp8_e4m3"]


def test_a_variant_that_ratios_would_not_find_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="--variant fp8: allowed are names that begin with rheo_"):
        variants([["fp8", "{}", ""]], model, CODER, {})


@pytest.mark.parametrize("name", LOADS)
def test_a_document_and_its_answer_fit_into_a_dense_pool_and_all_into_rheos_dram(
    name: str, model: Path, tmp_path: Path
) -> None:
    load, longest = LOADS[name], 1500
    served = served_model(model, load, tmp_path / "served")
    assert load.tokens + longest <= load.context <= dense_tokens(served, load.kv_gib)
    tokens = load.documents * load.tokens + load.at_once * longest
    assert tokens * kv_bytes_of_a_token(served) < min(load.host_gib, load.dram_gib) * 2**30
    line = server_arguments(load)
    assert line[line.index("--max-running-requests") + 1] == str(2 * load.documents)
    assert ("dummy" in line) == load.random


def test_a_random_model_has_the_tokenizer_of_the_one_given_and_rheo_the_fitted_locality(
    model: Path, tmp_path: Path
) -> None:
    for file in ("tokenizer.json", "model.safetensors"):
        (model / file).write_text("{}")
    load = LOADS["8b-32k"]
    served = served_model(model, load, tmp_path / "served")
    assert {file.name for file in served.iterdir()} == {"config.json", "tokenizer.json"}
    assert json.loads((served / "config.json").read_text()) == CONFIG
    assert served_model(model, CODER, tmp_path) == model
    assert environment_of("fa3", load, tmp_path, LOCALITY) == {}
    assert environment_of("rheo", CODER, tmp_path, LOCALITY) == {}
    fitted = json.loads(environment_of("rheo_fp8", load, tmp_path, LOCALITY)[ENVIRONMENT])
    assert Path(fitted["result"]).exists()


def test_every_load_has_a_result_of_its_own(model: Path) -> None:
    outs = {options_of(["--model", str(model), "--load", name]).out.name for name in LOADS}
    assert outs == {"serving_gpu.json", "serving_8b_32k.json", "serving_8b_110k.json"}
