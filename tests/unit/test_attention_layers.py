"""A loaded model is served where each of its attention layers is causal softmax attention over a cache of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from rheo_sglang.errors import ConfigError
from rheo_sglang.validate import check_attention_layers


class Attention(torch.nn.Module):
    """A model's attention module, as far as a check sees it."""

    def __init__(self, index: int, changed: dict[str, Any], **values: Any) -> None:
        super().__init__()
        shape = {"num_heads": 8, "head_dim": 64, "scaling": 0.125, "num_kv_heads": 2}
        self.attn = RadixAttention(**{**shape, "layer_id": index, **values})
        for name, value in changed.items():
            setattr(self.attn if hasattr(self.attn, name) else self, name, value)


def model(values: dict[str, Any], changed: dict[str, Any]) -> torch.nn.Module:
    """Three layers of SGLang's own class, of which the second differs."""
    layers = [Attention(0, {}), Attention(1, changed, **values), Attention(2, {})]
    return torch.nn.ModuleDict({"layers": torch.nn.ModuleList(layers)})


ODD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"attn_type": AttentionType.ENCODER_ONLY}, {}, "attention that is not causal (encoder_only)"),
    (
        {"attn_type": AttentionType.DECODER_BIDIRECTIONAL},
        {},
        "attention that is not causal (decoder_bidirectional)",
    ),
    ({"logit_cap": 30.0}, {}, "attention logits capped at 30.0"),
    ({"sliding_window_size": 4096}, {}, "a sliding window of 4096 tokens"),
    ({"is_cross_attention": True}, {}, "cross attention"),
    ({"use_irope": True}, {}, "attention within chunks"),
    ({"pos_encoding_mode": "ALIBI"}, {}, "positions encoded in attention (ALIBI)"),
    ({"v_head_dim": 128}, {}, "head size 64 for K and 128 for V"),
    ({}, {"xai_temperature_len": 1024}, "a softmax temperature that depends on the position"),
    ({}, {"sinks": torch.nn.Parameter(torch.zeros(8))}, "learned attention sinks"),
    ({}, {"attention_sink_bias": torch.nn.Parameter(torch.zeros(8))}, "learned attention sinks"),
    ({"num_kv_heads": 4}, {}, "other heads than layer layers.0.attn"),
    ({"num_heads": 4}, {}, "other heads than layer layers.0.attn"),
    ({"head_dim": 128}, {}, "other heads than layer layers.0.attn"),
    ({"layer_id": 0}, {}, "the KV cache of another layer"),
]


@pytest.mark.parametrize(("values", "changed", "reason"), ODD, ids=[case[2] for case in ODD])
def test_one_odd_layer_stops_the_start_with_layer_model_and_reason(
    values: dict[str, Any], changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_attention_layers(model(values, changed), "OddForCausalLM")
    assert str(caught.value) == (
        f"--attention-backend: 'rheo' does not support OddForCausalLM, whose layer layers.1.attn has {reason}; "
        "allowed: dense GQA or MHA models (Llama, Qwen2, Qwen3, SmolLM2, ...)"
    )


@pytest.mark.parametrize("head_dim", [40, 8])
def test_a_head_size_that_kernels_do_not_have_is_refused(head_dim: int) -> None:
    with pytest.raises(ConfigError, match=f"head size {head_dim}, which is no multiple of 16"):
        check_attention_layers(torch.nn.ModuleList([Attention(0, {}, head_dim=head_dim)]), "Odd")


@pytest.mark.parametrize(
    "odd", [{}, {"num_heads": 2}, {"num_heads": 16}, {"scaling": 1.0}, {"sliding_window_size": 0}]
)
def test_causal_layers_are_served_whatever_their_query_heads_and_scale(odd: dict[str, Any]) -> None:
    check_attention_layers(
        torch.nn.ModuleList([Attention(i, {}, **odd) for i in range(2)]), "LlamaForCausalLM"
    )


def test_layers_of_a_later_pipeline_rank_are_served() -> None:
    check_attention_layers(torch.nn.ModuleList([Attention(i, {}) for i in (16, 17)]), "LlamaForCausalLM")
