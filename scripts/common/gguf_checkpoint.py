"""A GGUF file as a Hugging Face checkpoint: weights dequantised, configuration and tokenizer from the file's header.

Known are the architectures ``llama`` with SmolLM2's tokenizer and ``qwen2``. GGUF: the specification in ggml's
documentation (``docs/gguf.md``); tensor names are those of llama.cpp's converters.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm

DTYPES = ("float32", "bfloat16", "float16")
SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BLOCK_ELEMENTS = 1 << 23
"""Elements that one job dequantises at once."""
CONTROL_TOKEN, USER_DEFINED_TOKEN, UNUSED_TOKEN = 3, 4, 5
EMBEDDING, HEAD = "token_embd.weight", "output.weight"

GLOBAL_NAMES = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
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
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text into words: a setting of the model, from its published tokenizer.json."""


@dataclass(frozen=True)
class Architecture:
    """What differs between the model families that are converted.

    Attributes
    ----------
    hugging_face
        Class and model type in Hugging Face's transformers.
    rotary_pairs
        Whether the file rotates rows ``(2i, 2i + 1)`` of a head together; Hugging Face rotates ``(i, i + D / 2)``.
    settings
        Fields of ``config.json`` that the header has no key for.
    """

    hugging_face: tuple[str, str]
    rotary_pairs: bool
    settings: dict[str, Any]


ARCHITECTURES = {
    "llama": Architecture(("LlamaForCausalLM", "llama"), True, {"attention_bias": False, "mlp_bias": False}),
    "qwen2": Architecture(
        ("Qwen2ForCausalLM", "qwen2"), False, {"use_sliding_window": False, "sliding_window": None}
    ),
}


class Job(NamedTuple):
    """Rows ``[first, last)`` of a tensor, to be written at a byte offset of the safetensors file."""

    source: str
    target: str
    tensor: int
    first: int
    last: int
    offset: int
    dtype: str
    heads: int
    """Heads whose rotary pairs are to become halves; 0 = none."""


def convert(source: Path, directory: Path, dtype: str, workers: int | None = None) -> None:
    """Write ``model.safetensors``, configuration and tokenizer of a GGUF file to a directory.

    Parameters
    ----------
    source : Path
        The GGUF file.
    directory : Path
        Existing, empty.
    dtype : str
        Storage dtype, one of `DTYPES`.
    workers : int, optional
        Processes that dequantise; one for each CPU when omitted.

    Raises
    ------
    SystemExit
        With one sentence, if the file's architecture is not known here.
    """
    reader = GGUFReader(source)
    header = {key: field.contents() for key, field in reader.fields.items()}
    name = header["general.architecture"]
    if name not in ARCHITECTURES:
        raise SystemExit(
            f"{source} holds a model of architecture {name!r}; allowed: {', '.join(ARCHITECTURES)}."
        )
    architecture = ARCHITECTURES[name]
    present = {tensor.name for tensor in reader.tensors}
    tied = not {EMBEDDING, HEAD} <= present
    jobs = _plan(reader, header, architecture, source, directory / "model.safetensors", dtype, tied)
    workers = workers or os.cpu_count() or 1
    progress = tqdm(total=len(jobs), desc="converting", unit="block", leave=False, disable=None)
    with progress, _pool(workers) as write:
        for _ in write(_write_rows, jobs):
            progress.update()
    _write_config(directory, header, name, architecture, dtype, tied)
    _write_tokenizer(directory, header, name)


@contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Iterator[None]]]:
    """A ``map`` over processes, or over nothing but this one."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool.map


def hugging_face_name(name: str, tied: bool) -> str:
    """Parameter name in Hugging Face's models for a tensor name of a GGUF file."""
    if tied and name == HEAD:
        return GLOBAL_NAMES[EMBEDDING]
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}"


def split_rotary_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key projection from rotary pairs to rotary halves.

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


def _plan(
    reader: GGUFReader,
    header: dict[str, Any],
    architecture: Architecture,
    source: Path,
    target: Path,
    dtype: str,
    tied: bool,
) -> list[Job]:
    """Lay the safetensors file out, write its header, and list what is to be written where."""
    width = torch.finfo(getattr(torch, dtype)).bits // 8
    index: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    shapes, offset = [], 0
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        end = offset + math.prod(shape) * width
        index[hugging_face_name(tensor.name, tied)] = {
            "dtype": SAFETENSORS_NAMES[dtype],
            "shape": shape,
            "data_offsets": [offset, end],
        }
        shapes.append((shape, offset))
        offset = end
    text = json.dumps(index).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with open(target, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(begin + offset)
    rotary = {}
    if architecture.rotary_pairs:
        for part, key in ((".attn_q.", "head_count"), (".attn_k.", "head_count_kv")):
            rotary[part] = header[f"llama.attention.{key}"]
    jobs = []
    for number, (tensor, (shape, start)) in enumerate(zip(reader.tensors, shapes, strict=True)):
        heads = next((count for part, count in rotary.items() if part in tensor.name), 0)
        row = math.prod(shape[1:])
        rows = shape[0] if heads or len(shape) == 1 else max(1, BLOCK_ELEMENTS // row)
        for first in range(0, shape[0], rows):
            last = min(first + rows, shape[0])
            at = begin + start + first * row * width
            jobs.append(Job(str(source), str(target), number, first, last, at, dtype, heads))
    return jobs


@cache
def _reader(source: str) -> GGUFReader:
    return GGUFReader(source)


def _write_rows(job: Job) -> None:
    tensor = _reader(job.source).tensors[job.tensor]
    data = tensor.data if tensor.data.ndim == 1 else tensor.data[job.first : job.last]
    weight = dequantize(np.array(data), tensor.tensor_type)
    if job.heads:
        weight = split_rotary_halves(weight, job.heads)
    stored = torch.from_numpy(np.array(weight, order="C")).to(getattr(torch, job.dtype)).view(torch.uint8)
    with open(job.target, "r+b") as file:
        file.seek(job.offset)
        file.write(stored.numpy().tobytes())


def _special_ids(header: dict[str, Any]) -> dict[str, int]:
    keys = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{name}_token_id": header[f"tokenizer.ggml.{key}_token_id"] for name, key in keys.items()}


def _write_config(
    directory: Path, header: dict[str, Any], name: str, architecture: Architecture, dtype: str, tied: bool
) -> None:
    """Write `config.json` and `generation_config.json`."""
    special = _special_ids(header)
    hidden, heads = header[f"{name}.embedding_length"], header[f"{name}.attention.head_count"]
    config = {
        "architectures": [architecture.hugging_face[0]],
        "model_type": architecture.hugging_face[1],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": header[f"{name}.feed_forward_length"],
        "num_hidden_layers": header[f"{name}.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": header[f"{name}.attention.head_count_kv"],
        "head_dim": header.get(f"{name}.attention.key_length", hidden // heads),
        "max_position_embeddings": header[f"{name}.context_length"],
        "rms_norm_eps": round(header[f"{name}.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": header[f"{name}.rope.freq_base"],
        "vocab_size": len(header["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        **architecture.settings,
        **special,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ends = (
        sorted({special["eos_token_id"], special["pad_token_id"]})
        if name == "qwen2"
        else special["eos_token_id"]
    )
    generation = {**special, "eos_token_id": ends}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _words(name: str) -> tuple[Any, Any]:
    """Normalizer (or None) and pre-tokenizer of an architecture's byte-level BPE."""
    if name == "qwen2":
        parts = [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        return normalizers.NFC(), pre_tokenizers.Sequence(parts)
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return None, pre_tokenizers.Sequence(parts)


def _write_tokenizer(directory: Path, header: dict[str, Any], name: str) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`: byte-level BPE and the tokens added to it."""
    tokens, kinds = header["tokenizer.ggml.tokens"], header["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in header["tokenizer.ggml.merges"]]
    used = len(tokens) - next(i for i, kind in enumerate([*reversed(kinds), 0]) if kind != UNUSED_TOKEN)
    vocabulary = {token: index for index, token in enumerate(tokens[:used])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    normalizer, tokenizer.pre_tokenizer = _words(name)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == CONTROL_TOKEN:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED_TOKEN:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {key.removesuffix("_id"): tokens[index] for key, index in _special_ids(header).items()}
    unknown = header.get("tokenizer.ggml.unknown_token_id")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": header[f"{name}.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": header["tokenizer.chat_template"],
        **special,
        **({} if unknown is None else {"unk_token": tokens[unknown]}),
    }
    if name == "qwen2":
        config |= {"bos_token": None, "add_bos_token": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
