"""Tokens whose Q, K and V are functions of id and position alone, and attention over them in float64.

Requests that share a prefix agree on what its pages contain, and any output can be held against the tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

VOCABULARY = 8


@dataclass(frozen=True)
class Shape:
    """A model's attention, and the pools it gets."""

    page_size: int = 16
    layers: int = 2
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    pages: int = 24
    frames: int = 4
    dtype: torch.dtype = torch.float32


class Tokens:
    """Q, K and V of every token id at every position, and attention over them in float64."""

    def __init__(self, shape: Shape, positions: int) -> None:
        draw = torch.Generator().manual_seed(1)

        def table(heads: int) -> torch.Tensor:
            by_id = torch.randn(shape.layers, VOCABULARY, 1, heads, shape.head_dim, generator=draw)
            by_position = torch.randn(shape.layers, 1, positions, heads, shape.head_dim, generator=draw)
            return (by_id + by_position).to(shape.dtype)

        self.group = shape.group
        self.scale = shape.head_dim**-0.5
        self.q = table(shape.kv_heads * shape.group)
        self.k, self.v = table(shape.kv_heads), table(shape.kv_heads)

    @staticmethod
    def rows(table: torch.Tensor, layer: int, tokens: list[int], start: int = 0) -> torch.Tensor:
        """Rows ``[T, heads, D]`` of ``tokens[start:]``."""
        return table[layer, tokens[start:], torch.arange(start, len(tokens))]

    def attention(
        self, layer: int, tokens: list[int], position: int, attended: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """Output ``[Hq, D]`` of the token at ``position`` over the tokens that ``attended`` ``[H, T]`` marks.

        Also returns how much of the attention to all tokens they hold, averaged over the query heads.
        """
        query = self.q[layer, tokens[position], position].double()
        keys = self.rows(self.k, layer, tokens).double().repeat_interleave(self.group, 1)
        values = self.rows(self.v, layer, tokens).double().repeat_interleave(self.group, 1)
        logits = torch.einsum("hd,thd->ht", query, keys) * self.scale
        left_out = ~attended.repeat_interleave(self.group, 0)
        mass = float(logits.softmax(1).masked_fill(left_out, 0.0).sum(1).mean())
        weights = logits.masked_fill(left_out, -math.inf).softmax(1)
        return torch.einsum("ht,thd->hd", weights, values), mass
