"""HookedModel: a checkpoint of transformers that reads densely and decodes with attention of our own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

DENSE = "sdpa"
CHUNK = 2048
"""Tokens that are read at a time."""


class HookedModel(ABC):
    """Runs a model of transformers in float32.

    Parameters
    ----------
    checkpoint
        Folder of a model with grouped-query attention.
    name
        Under which transformers knows the attention.
    page_size, row_tokens
        Geometry of pages and their summaries.
    """

    def __init__(self, checkpoint: Path, name: str, page_size: int, row_tokens: int) -> None:
        from transformers import AttentionInterface, AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation=DENSE
        ).eval()
        self.name, self.page_size, self.row_tokens = name, page_size, row_tokens
        AttentionInterface.register(name, self._attend)

    def read_densely(self, tokens: torch.Tensor) -> Any:
        """Keys and values of a text, ``[1, Y]``, by the model's own attention."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        self.model.set_attn_implementation(DENSE)
        for start in range(0, tokens.shape[1], CHUNK):
            chunk = tokens[:, start : start + CHUNK]
            self.model(input_ids=chunk, past_key_values=cache, logits_to_keep=1)
        return cache

    def run(self, tokens: torch.Tensor, text: Any, length: int) -> torch.Tensor:
        """Run tokens, ``[1, T]``, behind the first ``length`` of a text that was read.

        Returns
        -------
        torch.Tensor
            Logarithms of next-token probabilities, ``[T, V]``, float32.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for index, layer in enumerate(text.layers):
            cache.update(layer.keys[:, :, :length], layer.values[:, :, :length], index)
        self.model.set_attn_implementation(self.name)
        return self.model(input_ids=tokens, past_key_values=cache).logits[0].float().log_softmax(-1)

    @abstractmethod
    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention function as `transformers.AttentionInterface` calls it."""
        ...
