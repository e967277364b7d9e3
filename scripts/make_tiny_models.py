#!/usr/bin/env python3
"""Writes tiny random checkpoints, one for each attention shape the server tests need.

    python scripts/make_tiny_models.py [--out .models]

A group is the number of query heads that share one KV head. All models use one byte-level tokenizer (a token
is a byte or one of three special tokens), so that the length of a test prompt in tokens is its length in
bytes. Random weights show that the machinery is right; hit rates and accuracy need real ones.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from common.checkpoints import MODELS, is_current, new_checkpoint, recipe_digest

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")
BOS, EOS, PAD = range(3)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
WEIGHT_STD = 0.08
NORM_STD = 0.1


@dataclass(frozen=True)
class TinyModel:
    """Shape of one random checkpoint.

    Attributes
    ----------
    name : str
        Directory name.
    family : str
        `llama`, `qwen2` (biases on queries, keys and values), `qwen3` (normalises queries and keys per head) or
        `qwen3_moe` (the same, with experts instead of one MLP).
    heads, kv_heads, head_dim : int
        Query heads, KV heads, and channels of a head.
    layers, hidden, intermediate, context : int
        Layers, channels of the residual stream and of the MLP, and the longest context in tokens.
    experts, chosen : int
        Experts of a layer, of `intermediate` channels each, and how many of them a token takes.
    tied : bool
        Whether the output layer's weights are the embeddings.
    rope : mapping
        How positions are scaled past the length that the model was trained with; empty if they are not.
    """

    name: str
    family: str
    heads: int
    kv_heads: int
    head_dim: int = 64
    layers: int = 3
    hidden: int = 256
    intermediate: int = 512
    context: int = 16384
    experts: int = 0
    chosen: int = 0
    tied: bool = False
    rope: Mapping[str, Any] = field(default_factory=dict)

    def config(self, vocab_size: int) -> dict[str, Any]:
        """Contents of `config.json`."""
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.family]],
            "model_type": self.family,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "vocab_size": vocab_size,
            "attention_bias": False,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "float32",
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        }
        if self.rope:
            config["rope_scaling"] = dict(self.rope)
        if self.experts:
            config |= {
                "num_experts": self.experts,
                "num_experts_per_tok": self.chosen,
                "moe_intermediate_size": self.intermediate,
                "norm_topk_prob": True,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            }
        return config

    def shapes(self, vocab_size: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in Hugging Face's layout."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (key_value, self.hidden),
            "self_attn.v_proj": (key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "post_attention_layernorm": (self.hidden,),
        }
        for mlp in [f"mlp.experts.{number}" for number in range(self.experts)] or ["mlp"]:
            layer |= {
                f"{mlp}.gate_proj": (self.intermediate, self.hidden),
                f"{mlp}.up_proj": (self.intermediate, self.hidden),
                f"{mlp}.down_proj": (self.hidden, self.intermediate),
            }
        if self.experts:
            layer["mlp.gate"] = (self.experts, self.hidden)
        if self.family.startswith("qwen3"):
            layer |= {"self_attn.q_norm": (self.head_dim,), "self_attn.k_norm": (self.head_dim,)}
        biases = {"q_proj": query, "k_proj": key_value, "v_proj": key_value} if self.family == "qwen2" else {}
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, self.hidden)}
        for index in range(self.layers):
            shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
            shapes |= {
                f"model.layers.{index}.self_attn.{name}.bias": (size,) for name, size in biases.items()
            }
        shapes["model.norm.weight"] = (self.hidden,)
        return shapes if self.tied else {**shapes, "lm_head.weight": (vocab_size, self.hidden)}


LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
TINY_MODELS = (
    TinyModel("tiny-llama-group4", "llama", heads=8, kv_heads=2),
    TinyModel("tiny-llama-group1", "llama", heads=4, kv_heads=4),
    TinyModel("tiny-llama-group8", "llama", heads=8, kv_heads=1),
    TinyModel("tiny-qwen3-group4", "qwen3", heads=8, kv_heads=2, head_dim=32),
    TinyModel("tiny-llama31-group2", "llama", heads=4, kv_heads=2, rope=LLAMA_3_1),
    TinyModel(
        *("tiny-qwen2-group16", "qwen2"),
        heads=16,
        kv_heads=1,
        head_dim=32,
        hidden=512,
        context=2048,
        tied=True,
        rope=YARN,
    ),
    TinyModel(
        "tiny-qwen3-moe", "qwen3_moe", heads=8, kv_heads=2, head_dim=32, intermediate=64, experts=8, chosen=2
    ),
)


def byte_tokenizer() -> Tokenizer:
    """A tokenizer with one token for each byte after the three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Normal random matrices, and norm weights scattered around one, in float32."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1.0 + NORM_STD * noise
        else:
            weights[name] = WEIGHT_STD * noise
    return weights


def make(model: TinyModel, out: Path) -> Path:
    """Write one checkpoint below `out` unless a current one exists, and return its directory."""
    directory = out / model.name
    recipe = recipe_digest(__file__, repr(model))
    if is_current(directory, recipe):
        return directory
    tokenizer = byte_tokenizer()
    vocab_size = tokenizer.get_vocab_size()
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
        "bos_token": SPECIAL_TOKENS[BOS],
        "eos_token": SPECIAL_TOKENS[EOS],
        "pad_token": SPECIAL_TOKENS[PAD],
    }
    with new_checkpoint(directory, recipe) as unfinished:
        weights = random_weights(model.shapes(vocab_size), seed=0)
        save_file(weights, unfinished / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(unfinished / "tokenizer.json"))
        (unfinished / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
        (unfinished / "config.json").write_text(json.dumps(model.config(vocab_size), indent=2) + "\n")
    return directory


def main() -> None:
    """Parse the command line and write every model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=MODELS, help="directory that holds the checkpoints")
    out = parser.parse_args().out
    for model in TINY_MODELS:
        print(f"{make(model, out)}: group {model.heads // model.kv_heads}, random weights")


if __name__ == "__main__":
    main()
