"""Heads are those of the layers that SGLang built for this rank, whatever the configuration says of the model."""

from __future__ import annotations

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention

from rheo_sglang.decode.heads import HeadShape, loaded_heads
from rheo_sglang.errors import ConfigError

DIM = 64


def layers_of_rank(queries: int, kv_heads: int, ranks: int, layers: int = 3) -> torch.nn.ModuleList:
    """Attention layers of one of several ranks, with the heads that SGLang's models give them."""
    return torch.nn.ModuleList(
        RadixAttention(queries // ranks, DIM, DIM**-0.5, max(1, kv_heads // ranks), layer)
        for layer in range(layers)
    )


@pytest.mark.parametrize(
    ("queries", "kv_heads", "ranks", "expected"),
    [
        (8, 1, 1, HeadShape(1, 8, DIM)),
        (8, 1, 2, HeadShape(1, 4, DIM)),
        (8, 2, 8, HeadShape(1, 1, DIM)),
        (32, 8, 2, HeadShape(4, 4, DIM)),
        (32, 4, 8, HeadShape(1, 4, DIM)),
    ],
)
def test_a_group_is_what_a_rank_has_of_it(
    queries: int, kv_heads: int, ranks: int, expected: HeadShape
) -> None:
    assert loaded_heads(layers_of_rank(queries, kv_heads, ranks)) == expected


def test_layers_with_other_heads_are_refused_in_one_sentence() -> None:
    layers = layers_of_rank(8, 2, 1)
    layers.append(RadixAttention(4, DIM, DIM**-0.5, 2, 3))
    with pytest.raises(
        ConfigError, match=r"4 query, 2 K and 2 V heads.*8 query.*allowed: layers that all have"
    ):
        loaded_heads(layers)


def test_a_model_without_attention_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="there are none"):
        loaded_heads(torch.nn.Linear(2, 2))


def test_heads_that_no_group_fits_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 query, 2 K and 2 V heads of sizes 64 and 64; allowed"):
        loaded_heads(torch.nn.ModuleList([RadixAttention(3, DIM, DIM**-0.5, 2, 0)]))
