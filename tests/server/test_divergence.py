"""Forced decoding through a real server: its own greedy text comes back with its own log-probabilities."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import requests

from rheo_sglang.evaluation import divergence_command
from rheo_sglang.evaluation.divergence import ForcedDecoder, Prompt

STEPS = 12
FORCING = ("--enable-custom-logit-processor",)


@pytest.fixture(scope="module")
def dense(serve, smollm2):
    config = {"budget_ratio": 1.0, "frame_pool_tokens": 2048}
    return serve(smollm2, rheo_config=config, max_running_requests=2, arguments=FORCING)


@pytest.fixture(scope="module")
def sparse(serve, smollm2):
    config = {"budget_ratio": 0.1, "budget_min_pages": 3, "dense_threshold": 0, "frame_pool_tokens": 2048}
    return serve(smollm2, rheo_config=config, page_size=16, max_running_requests=2, arguments=FORCING)


def test_forcing_what_the_server_says_anyway_changes_nothing(dense):
    decoder = ForcedDecoder(dense.base_url)
    prompt = decoder.prompt("documentation", 200, STEPS, seed=3)
    body = {
        "input_ids": prompt.tokens,
        "sampling_params": {"max_new_tokens": STEPS + 1, "temperature": 0.0, "ignore_eos": True},
        "return_logprob": True,
        "top_logprobs_num": 8,
    }
    free = requests.post(f"{dense.base_url}/generate", json=body, timeout=300).json()["meta_info"]
    said = [token for _, token, _ in free["output_token_logprobs"]]
    forced = decoder.decode(Prompt("documentation", 3, prompt.tokens, said))
    for step, top in zip(forced.distributions, free["output_top_logprobs"][1:], strict=True):
        for value, token, _ in top:
            assert step[token] == pytest.approx(value, abs=1e-3)


def test_a_small_budget_diverges_and_the_dense_one_does_not(dense, sparse, tmp_path: Path):
    common = ["--lengths", "300", "--kinds", "documentation", "--prompts", "2", "--steps", str(STEPS)]
    kept, out = tmp_path / "dense.json.gz", tmp_path / "out.json"
    assert divergence_command.main(["--dense-url", dense.base_url, "--save-dense", str(kept), *common]) == 0
    found = {}
    for name, server in (("dense", dense), ("sparse", sparse)):
        arguments = ["--url", server.base_url, "--dense", str(kept), "--out", str(out), *common]
        assert divergence_command.main(arguments) == 0
        found[name] = json.loads(out.read_text())["metrics"]
    assert found["dense"]["kl_300"] < 1e-4
    assert found["dense"]["same_top_300"] == 1.0
    assert found["sparse"]["kl_300"] > 0.01
    assert math.isclose(found["sparse"]["dense_loss_300"], found["dense"]["loss_300"], abs_tol=1e-3)


def test_a_server_that_cannot_force_is_named_in_one_sentence(serve, tiny_models, capsys):
    server = serve(tiny_models[0])
    common = ["--lengths", "64", "--kinds", "code", "--prompts", "1", "--steps", "4"]
    assert divergence_command.main(["--url", server.base_url, "--dense-url", server.base_url, *common]) == 1
    assert "custom-logit-processor" in capsys.readouterr().err
