"""ContinuedModel: steps right behind a prompt and far behind it, with corrections that its last tokens tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from budgets.corrections import Learned, Way, learn, select, tail, tail_bias
from budgets.hooked import HookedModel
from budgets.steps import LayerSteps, PageData, page_data
from selection.layer import Layer


class Case(NamedTuple):
    """A way to rank pages, one to attend what is left out, and the share of the pages that is selected."""

    rank: Way
    tail: Way
    mean: float


@dataclass(frozen=True)
class Continued:
    """A text that was read, cut where its paged part ends.

    Attributes
    ----------
    name
        Of the text.
    tokens
        Its tokens, ``[1, Y]``.
    keys
        Keys and values of all layers.
    paged
        Tokens of whole pages; those behind them are attended exactly.
    learned
        Of every layer.
    pages
        What is stored of the pages, by layer.
    """

    name: str
    tokens: torch.Tensor
    keys: Any
    paged: int
    learned: list[Learned] = field(default_factory=list)
    pages: list[PageData] = field(default_factory=list)


class Found(NamedTuple):
    """What became of some steps."""

    log_probabilities: torch.Tensor
    """``[T, V]``."""
    error: torch.Tensor
    """Relative distance of attention outputs from what dense attention makes of the same queries, ``[L, H, T, G]``."""
    covered: torch.Tensor
    """Share of the attention that was attended exactly, ``[L, H, T]``."""
    bias: torch.Tensor
    """`tail_bias`, ``[L, H, T, G]``."""


class ContinuedModel(HookedModel):
    """Runs a model of transformers with corrected selections and tails.

    Parameters
    ----------
    checkpoint
        Folder of a model with grouped-query attention.
    page_size, row_tokens
        Geometry of pages and their summaries.
    """

    def __init__(self, checkpoint: Path, page_size: int, row_tokens: int) -> None:
        super().__init__(checkpoint, "continued", page_size, row_tokens)
        self._text: Continued | None = None
        self._case: Case | None = None
        self._learns = False
        self._found: list[tuple[torch.Tensor, ...]] = []

    @torch.inference_mode()
    def read(self, name: str, ids: list[int], paged: int, tell: int) -> Continued:
        """Read a text densely; its ``tell`` tokens behind ``paged``, the last of a prompt, tell corrections."""
        tokens = torch.tensor([ids])
        text = Continued(name, tokens, self.read_densely(tokens), paged)
        self._learns = True
        self._run(text, paged, tell, None)
        self._learns = False
        return text

    @torch.inference_mode()
    def decode(self, text: Continued, start: int, steps: int, case: Case | None) -> Found:
        """``steps`` steps from token ``start`` on, by a case or densely; the tokens before are those of the text."""
        self._found = []
        log_probabilities = self._run(text, start, steps, case)
        parts = zip(*self._found, strict=True) if case is not None else [[torch.empty(0)]] * 3
        return Found(log_probabilities, *(torch.stack(list(part)) for part in parts))

    def _run(self, text: Continued, start: int, steps: int, case: Case | None) -> torch.Tensor:
        self._text, self._case = text, case
        return self.run(text.tokens[:, start : start + steps], text.keys, start)

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
        text, case, index = self._text, self._case, int(module.layer_idx)  # type: ignore[arg-type]
        assert text is not None
        grouped = query[0].unflatten(0, (key.shape[1], -1)).transpose(1, 2)
        layer = Layer(grouped, key[0], value[0], text.paged, scaling)
        if len(text.pages) == index:
            text.pages.append(page_data(layer.keys, layer.values, self.page_size, self.row_tokens))
        out = layer.dense
        if self._learns or case is not None:
            steps = LayerSteps(layer, text.pages[index], self.page_size)
        if self._learns:
            text.learned.append(learn(steps))
        if case is not None:
            chosen = select(steps, case.rank, text.learned[index], case.mean)
            lse = tail(steps, case.tail, text.learned[index])
            outcome = steps.attend(chosen, lse)
            out = outcome.out
            self._found.append((outcome.error, outcome.covered, tail_bias(steps, chosen, lse)))
        return out.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None], None
