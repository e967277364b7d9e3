"""Invariant 9: a bad start ends with one sentence that names the flag, its value and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from launch import RheoServer

from common.sglang_server import ServerError

REFUSED_BY_ARGUMENTS = {
    "unknown key": (
        {"rheo_config": {"budgets": 0.2}},
        "--rheo-config: unknown key 'budgets'=0.2; allowed keys: ",
    ),
    "negative size": (
        {"rheo_config": {"host_pool_gib": -1}},
        "--rheo-config: host_pool_gib=-1.0 is not supported; allowed: above 0",
    ),
    "page size": ({"page_size": 1}, "--page-size=1 is not supported; allowed: 16, 32, 64"),
    "KV dtype": (
        {"arguments": ["--kv-cache-dtype", "fp8_e5m2"]},
        "--kv-cache-dtype='fp8_e5m2' is not supported; allowed: auto, bf16, bfloat16, fp8_e4m3",
    ),
}
REFUSED_BY_SIZES = {
    "more requests than frames": (
        {"rheo_config": {"frame_pool_tokens": 1024}, "max_running_requests": 1000},
        "--max-running-requests=1000 needs as many frames for the pages being written, but the frame pool has 32; "
        "allowed: at most 32, or a larger frame_pool_gib or frame_pool_tokens",
    ),
    "host pool beyond the DRAM": (
        {"rheo_config": {"host_pool_gib": 5000, "frame_pool_tokens": 1024}},
        "host_pool_gib=5000.0 is a host pool of 5000.00 GiB, which does not fit into the available DRAM; "
        "allowed: up to ",
    ),
    "host pool of no page": (
        {"rheo_config": {"host_pool_gib": 0.0001}, "page_size": 64},
        "host_pool_gib=0.0001 is not supported; allowed: at least 0.000367 (a request takes 2 pages)",
    ),
    "less than a frame": (
        {"rheo_config": {"frame_pool_tokens": 16}},
        "frame_pool_tokens=16 is not supported; allowed: at least 32 (one page)",
    ),
    "host smaller than frames": (
        {"rheo_config": {"frame_pool_tokens": 8192}, "arguments": ["--max-total-tokens", "4096"]},
        "frame_pool_tokens=8192 is more than --max-total-tokens=4096, and the host pool holds all pages that frames "
        "do; allowed: frames for up to 4096 tokens, or --max-total-tokens of at least 8192",
    ),
}
FRESH = ("unknown key", "more requests than frames")
"""Of either kind one that is refused in new interpreters."""
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}
REFUSED_MODELS = {
    "capped attention logits": {
        **TINY,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 128,
        "query_pre_attn_scalar": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "layer encoder.layer.0.attention.self_attn.attn has attention that is not causal (encoder_only)": {
        **{name: value for name, value in TINY.items() if name != "num_key_value_heads"},
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
    },
    "multi-head latent attention (MLA)": {
        **TINY,
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_key_value_heads": 4,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 2,
        "n_group": 1,
        "topk_group": 1,
    },
}


def refusal(server: RheoServer) -> str:
    """The one sentence that the server ended with; nothing about processes or code is said beside it."""
    with pytest.raises(ServerError), server:
        pass
    log = server.log.read_text()
    assert "Traceback" not in log, log
    (sentence,) = [line for line in log.splitlines() if line.startswith("rheo: error: ")]
    assert server.process is not None and server.process.returncode == 2
    assert sentence in log.splitlines()[-3:]
    return sentence.removeprefix("rheo: error: ")


def one_with_the_oldest(cases: Iterable[str], some: int = 2) -> list[Any]:
    """Cases that SGLang treats alike: one with the oldest, some with the newest, the others with --full."""
    first, *others = cases
    marks = [pytest.mark.newest] * (some - 1) + [pytest.mark.full] * len(others)
    return [first, *(pytest.param(case, marks=mark) for case, mark in zip(others, marks, strict=False))]


@pytest.mark.parametrize(
    "case", [*one_with_the_oldest(REFUSED_BY_ARGUMENTS), *one_with_the_oldest(REFUSED_BY_SIZES)]
)
def test_a_bad_setting_is_named(tiny_models, tmp_path, case):
    options, sentence = (REFUSED_BY_ARGUMENTS | REFUSED_BY_SIZES)[case]
    found = refusal(RheoServer("tiny-llama-group4", tmp_path / "log", fresh=case in FRESH, **options))
    assert found.startswith(sentence)


@pytest.mark.parametrize("reason", one_with_the_oldest(REFUSED_MODELS))
def test_a_model_that_rheo_cannot_serve_is_named(tiny_models, tmp_path, reason):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(REFUSED_MODELS[reason]))
    server = RheoServer(
        str(model),
        tmp_path / "log",
        arguments=["--load-format", "dummy", "--skip-tokenizer-init"],
    )
    assert f"{reason}; allowed: dense GQA or MHA models" in refusal(server)
