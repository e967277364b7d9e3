"""KV of 8 bits in the server: at budget 1.0 it gives what dense attention to K and V of 8 bits gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import requests
import torch
from safetensors.torch import load_file, save_file
from test_exact import EXACT, NEW_TOKENS, prompts
from transformers import AutoModelForCausalLM, DynamicCache

from common.checkpoints import MODELS

MODEL, LAYERS = "tiny-llama-group4", 3
EIGHT_BITS = ("--kv-cache-dtype", "fp8_e4m3")
SCALES = [(0.002, 0.05), (3.0, 0.001), (0.5, 2.0)]
"""Of K and V of each layer: some numbers are subnormal, and many beyond the largest, which tells scales apart."""
STEPS = 8


class QuantisedCache(DynamicCache):
    """What attention reads of K and V once they were stored in 8 bits."""

    def __init__(self, scales: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.scales = scales

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Keep what 8 bits hold of new tokens."""
        stored = [
            (part / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(part.dtype) * scale
            for part, scale in zip((key_states, value_states), self.scales[layer_idx], strict=True)
        ]
        return super().update(*stored, layer_idx, *args, **kwargs)


def scaled_checkpoint(folder: Path) -> Path:
    """The tiny model in bfloat16 with a scale of K and of V in each layer, as a quantised checkpoint has them."""
    weights = {
        name: tensor.bfloat16() for name, tensor in load_file(MODELS / MODEL / "model.safetensors").items()
    }
    for layer, scales in enumerate(SCALES):
        for name, scale in zip("kv", scales, strict=True):
            weights[f"model.layers.{layer}.self_attn.{name}_scale"] = torch.tensor(scale)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((MODELS / MODEL / "config.json").read_text())
    linear = [name.removesuffix(".weight") for name in weights if "_proj" in name]
    config |= {
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "ignored_layers": linear,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    for file in (MODELS / MODEL).glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_budget_one_gives_the_tokens_of_dense_attention_to_eight_bits(serve):
    server = serve(MODEL, rheo_config=EXACT, page_size=16, arguments=EIGHT_BITS)
    dense = AutoModelForCausalLM.from_pretrained(MODELS / MODEL, dtype=torch.float32).eval()
    expected = []
    for prompt in prompts():
        out = dense.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            past_key_values=QuantisedCache([(1.0, 1.0)] * LAYERS),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
        )
        expected.append(out[0, len(prompt) :].tolist())
    for cached in (False, True):
        answers = server.generate(prompts(), NEW_TOKENS, ignore_eos=True)
        assert [answer["output_ids"] for answer in answers] == expected
        assert any(answer["meta_info"]["cached_tokens"] for answer in answers) == cached
    assert server.rheo_state()["recorder"]["overall"]["hit_rate"] < 1.0, "the frame pool was to be too small"
    server.stop()


@pytest.mark.newest
def test_scales_of_a_checkpoint_are_applied(serve, tiny_models, tmp_path):
    """Log-probabilities are those of K and V of 8 bits with these scales, and not those with a scale of 1."""
    folder = scaled_checkpoint(tmp_path)
    server = serve(
        str(folder), rheo_config=EXACT, page_size=16, arguments=(*EIGHT_BITS, "--dtype", "bfloat16")
    )
    prompt = prompts()[1]
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": STEPS, "temperature": 0.0, "ignore_eos": True},
        "return_logprob": True,
        "top_logprobs_num": 16,
    }
    found = requests.post(f"{server.base_url}/generate", json=body, timeout=300).json()["meta_info"]
    said = [token for _, token, _ in found["output_token_logprobs"]]
    server.stop()
    dense = AutoModelForCausalLM.from_pretrained(MODELS / MODEL, dtype=torch.float32).eval()
    errors = []
    for scales in (SCALES, [(1.0, 1.0)] * LAYERS):
        with torch.no_grad():
            logits = dense(torch.tensor([prompt + said]), past_key_values=QuantisedCache(scales)).logits[0]
        expected = logits[len(prompt) - 1 : -1].log_softmax(1)
        difference = [
            abs(value - float(expected[step, token]))
            for step, top in enumerate(found["output_top_logprobs"])
            for value, token, _ in top
        ]
        errors.append(sum(difference) / len(difference))
    assert errors[0] < 0.1
    assert errors[1] > 0.5
