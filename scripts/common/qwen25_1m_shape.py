"""The shape of Qwen2.5-7B-1M, for speed with random weights: 28 layers, 28 query and 4 KV heads of 128.

Its dual chunk attention, a change to positions that the released weights want beyond 256K tokens, is left out:
positions are plain RoPE with the released base, as far as 1M.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rheo_sglang.pools.plan import KVShape

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 1048576,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
KV = KVShape(layers=28, kv_heads=4, head_dim=128, dtype=torch.bfloat16, page_size=32)


def make_shape(folder: Path) -> Path:
    """Write a configuration without weights, for SGLang's ``--load-format dummy``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    return folder
