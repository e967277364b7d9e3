"""Invariant 9: a bad start ends with one sentence that names the flag, its value and what is allowed."""

from __future__ import annotations

import json

import pytest
from launch import RheoServer

from common.sglang_server import ServerError

REFUSED_BY_ARGUMENTS = {
    "unknown key": (
        {"rheo_config": {"budget": 0.2}},
        "--rheo-config: unknown key 'budget'=0.2; allowed keys: ",
    ),
    "negative size": (
        {"rheo_config": {"host_pool_gib": -1}},
        "--rheo-config: host_pool_gib=-1.0 is not supported; allowed: above 0",
    ),
    "page size": ({"page_size": 1}, "--page-size=1 is not supported; allowed: 16, 32, 64"),
    "KV dtype": (
        {"arguments": ["--kv-cache-dtype", "fp8_e5m2"]},
        "--kv-cache-dtype='fp8_e5m2' is not supported; allowed: auto, bf16, bfloat16",
    ),
}
REFUSED_BY_SIZES = {
    "host smaller than frames": (
        {"rheo_config": {"frame_pool_tokens": 8192}, "arguments": ["--max-total-tokens", "4096"]},
        "the host pool (4096 tokens) is smaller than the frame pool (8192 tokens)",
    ),
    "more requests than frames": (
        {"rheo_config": {"frame_pool_tokens": 64}, "max_running_requests": 16},
        "--max-running-requests=16 needs as many frames",
    ),
}
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
    """What the server printed before it stopped."""
    with pytest.raises(ServerError), server:
        pass
    return server.log.read_text()


@pytest.mark.parametrize("case", [*REFUSED_BY_ARGUMENTS, *REFUSED_BY_SIZES])
def test_a_bad_setting_is_named(tiny_models, tmp_path, case):
    options, sentence = (REFUSED_BY_ARGUMENTS | REFUSED_BY_SIZES)[case]
    log = refusal(RheoServer("tiny-llama-group4", tmp_path / "log", **options))
    assert sentence in log
    if case in REFUSED_BY_ARGUMENTS:
        assert "Traceback" not in log


@pytest.mark.parametrize("reason", REFUSED_MODELS)
def test_a_model_that_rheo_cannot_serve_is_named(tiny_models, tmp_path, reason):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(REFUSED_MODELS[reason]))
    server = RheoServer(
        str(model), tmp_path / "log", arguments=["--load-format", "dummy", "--skip-tokenizer-init"]
    )
    log = refusal(server)
    assert f"which has {reason}; allowed: dense GQA or MHA models" in log
