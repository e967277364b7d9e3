#!/usr/bin/env python3
"""Writes tiny random checkpoints, one for each attention shape the server tests need.

    python scripts/make_tiny_models.py [--out .models]

A group is the number of query heads that share one KV head. All models use one byte-level tokenizer (a token
is a byte or one of three special tokens), so that the length of a test prompt in tokens is its length in
bytes. Random weights show that the machinery is right; hit rates and accuracy need real ones.
"""

import argparse
import json
from dataclasses import dataclass
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
        `llama` or `qwen3`; Qwen3 normalises queries and keys per head.
    heads, kv_heads, head_dim : int
        Query heads, KV heads, and channels of a head.
    layers, hidden, intermediate, context : int
        Layers, channels of the residual stream and of the MLP, and the longest context in tokens.
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

    def config(self, vocab_size: int) -> dict[str, Any]:
        """Contents of `config.json`."""
        architecture = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[self.family]
        return {
            "architectures": [architecture],
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
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        }

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
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        if self.family == "qwen3":
            layer |= {"self_attn.q_norm": (self.head_dim,), "self_attn.k_norm": (self.head_dim,)}
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, self.hidden)}
        for index in range(self.layers):
            shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
        return shapes | {"model.norm.weight": (self.hidden,), "lm_head.weight": (vocab_size, self.hidden)}


TINY_MODELS = (
    TinyModel("tiny-llama-group4", "llama", heads=8, kv_heads=2),
    TinyModel("tiny-llama-group1", "llama", heads=4, kv_heads=4),
    TinyModel("tiny-llama-group8", "llama", heads=8, kv_heads=1),
    TinyModel("tiny-qwen3-group4", "qwen3", heads=8, kv_heads=2, head_dim=32),
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
        weights[name] = 1.0 + NORM_STD * noise if len(shape) == 1 else WEIGHT_STD * noise
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
