"""RecordedModel: a checkpoint's decode steps over prompts that were read once, densely or with a selection in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from budgets.hooked import HookedModel
from budgets.steps import LayerSteps, Outcome, PageData, View, page_data
from selection.layer import Layer

Select = Callable[[View, int], torch.Tensor]
"""Chosen pages ``[H, T, N]`` from a layer's view and its index."""


@dataclass(frozen=True)
class Prompt:
    """A prompt that was read, and the tokens to decode.

    Attributes
    ----------
    name
        Of the text.
    steps
        Tokens that follow it, ``[1, T]``.
    text
        Keys and values of the text that it is the beginning of.
    length
        Its tokens, whole pages.
    dense
        Logarithms of next-token probabilities by dense attention, ``[T, V]``.
    views
        What rules see in each layer of the dense model.
    """

    name: str
    steps: torch.Tensor
    text: Any
    length: int
    dense: torch.Tensor
    views: list[View]


class RecordedModel(HookedModel):
    """Runs a model of transformers with attention of our own in the decode steps.

    Parameters
    ----------
    checkpoint
        Folder of a model with grouped-query attention.
    page_size, row_tokens
        Geometry of pages and their summaries.
    """

    def __init__(self, checkpoint: Path, page_size: int, row_tokens: int) -> None:
        super().__init__(checkpoint, "budgets", page_size, row_tokens)
        self.layers: int = self.model.config.num_hidden_layers
        self._select: Select | None = None
        self._views: list[View] = []
        self._outcomes: list[Outcome] = []
        self._pages: dict[int, PageData] = {}
        self._paged = (0, 0)

    @torch.inference_mode()
    def read(self, name: str, ids: list[int], ends: Sequence[int], steps: int) -> Iterator[Prompt]:
        """Read a text once, and decode ``steps`` tokens densely behind each of some ends of it.

        Parameters
        ----------
        name
            Of the text.
        ids
            Its tokens.
        ends
            Lengths of prompts, whole pages; the last one and ``steps`` are no more than the text has.
        steps
            Tokens to decode.
        """
        tokens = torch.tensor([ids])
        whole = self.read_densely(tokens[:, : max(ends)])
        for end in ends:
            self._views = []
            forced = tokens[:, end : end + steps]
            dense = self._decode(forced, whole, end, None)
            yield Prompt(f"{name}/{end}", forced, whole, end, dense, self._views)

    @torch.inference_mode()
    def decode(self, prompt: Prompt, select: Select) -> tuple[torch.Tensor, list[Outcome]]:
        """Steps with a selection in every layer: logarithms of probabilities, and what became of each layer."""
        self._outcomes = []
        return self._decode(prompt.steps, prompt.text, prompt.length, select), self._outcomes

    def _decode(self, steps: torch.Tensor, text: Any, length: int, select: Select | None) -> torch.Tensor:
        if self._paged != (id(text), length):
            self._pages.clear()
            self._paged = (id(text), length)
        self._select = select
        return self.run(steps, text, length)

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
        heads, index = key.shape[1], int(module.layer_idx)  # type: ignore[arg-type]
        length = key.shape[2] - query.shape[2]
        grouped = query[0].unflatten(0, (heads, -1)).transpose(1, 2)
        layer = Layer(grouped, key[0], value[0], length, scaling)
        if index not in self._pages:
            self._pages[index] = page_data(layer.keys, layer.values, self.page_size, self.row_tokens)
        steps = LayerSteps(layer, self._pages[index], self.page_size)
        out = layer.dense
        if self._select is None:
            self._views.append(steps.view())
        else:
            outcome = steps.attend(self._select(steps.view(), index))
            out = outcome.out
            self._outcomes.append(outcome._replace(out=torch.empty(0)))
        return out.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None], None
