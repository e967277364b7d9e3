"""ahead: one layer's queries and misses predicted from the hidden states of the layer before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from locality.statistics import Booleans
from locality.trace import QueryRecorder, Trace, decode, load_model

TRUE = "true"
PREDICTORS = ("layer_input", "before_mlp")
"""Hidden states that queries of the next layer are predicted from: the one that enters a layer, and the one that
leaves its attention and enters its MLP."""


class HiddenStates:
    """The residual stream of every single-token forward pass, at the same place of every layer.

    Parameters
    ----------
    norms
        The module of each layer whose input is kept.
    """

    def __init__(self, norms: list[torch.nn.Module]) -> None:
        self.layers = len(norms)
        self.seen: list[torch.Tensor] = []
        for norm in norms:
            norm.register_forward_pre_hook(self._keep)

    def _keep(self, _: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments[0].shape[1] == 1:
            self.seen.append(arguments[0][0, 0].clone())

    def take(self) -> torch.Tensor:
        """What was kept since the last call, ``[steps, L, hidden]``."""
        states = torch.stack(self.seen).unflatten(0, (-1, self.layers))
        self.seen.clear()
        return states


@torch.inference_mode()
def project(model: Any, layer: int, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotated queries that a layer would ask with if these hidden states entered it.

    Parameters
    ----------
    model
        ``LlamaForCausalLM`` or ``Qwen3ForCausalLM``.
    layer
        Layer index.
    hidden
        ``[steps, hidden]``, float32.
    positions
        Position of each in the sequence, ``[steps]``, int64.

    Returns
    -------
    torch.Tensor
        ``[steps, Hq, D]``, float32.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    module = model.model.layers[layer]
    attention = module.self_attn
    query = attention.q_proj(module.input_layernorm(hidden)).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "q_norm"):
        query = attention.q_norm(query)
    cos, sin = model.model.rotary_emb(hidden[None], position_ids=positions[None])
    query = query.transpose(0, 1)[None]
    rotated, _ = apply_rotary_pos_emb(query, query, cos, sin)
    return rotated[0].transpose(0, 1)


class AheadRecorder:
    """A model with its queries and hidden states recorded.

    Parameters
    ----------
    model_path
        Checkpoint of a Llama or Qwen3 decoder.
    """

    def __init__(self, model_path: Path) -> None:
        self.model: Any
        self.recorder: QueryRecorder
        self.model, self.recorder = load_model(model_path)
        layers = self.model.model.layers
        self.states = {
            "layer_input": HiddenStates([layer.input_layernorm for layer in layers]),
            "before_mlp": HiddenStates([layer.post_attention_layernorm for layer in layers]),
        }

    def decode(
        self, prompt: list[int], steps: int, continuation: list[int] | None = None
    ) -> dict[str, Trace]:
        """Traces of layers 1, 2, ... with the queries that were asked and with those that were predicted.

        Parameters
        ----------
        prompt, steps, continuation
            As in `locality.trace.decode`.

        Returns
        -------
        dict of str to Trace
            `TRUE` and each of `PREDICTORS`; the keys of all are the true ones.
        """
        trace = decode(self.model, self.recorder, prompt, steps, continuation)
        positions = torch.arange(len(prompt), len(prompt) + steps)
        keys = trace.keys[1:]
        result = {TRUE: Trace(trace.queries[:, 1:], keys, trace.tokens)}
        for name, states in self.states.items():
            before = states.take()[:, :-1]
            queries = [
                project(self.model, layer, hidden, positions)
                for layer, hidden in enumerate(before.unbind(1), 1)
            ]
            result[name] = Trace(torch.stack(queries, 1), keys, trace.tokens)
        return result


def cosine(true: torch.Tensor, predicted: torch.Tensor) -> float:
    """Mean cosine between true and predicted queries, both ``[..., D]``."""
    return float(torch.nn.functional.cosine_similarity(true, predicted, dim=-1).mean())


def forecast(retrieved: Booleans, predicted: Booleans, resident: Booleans) -> dict[str, float]:
    """How well the misses of a selection are predicted, over all entries of the arrays.

    Parameters
    ----------
    retrieved
        Pages that were selected, bool.
    predicted
        Pages that a prediction selects, bool, same shape.
    resident
        Pages in frames before, bool, same shape.

    Returns
    -------
    dict of str to float
        ``hit_rate``: share of the selected pages that are resident. ``hit_rate_ahead``: the same if the predicted
        pages are resident too. ``miss_recall``: share of the misses that are predicted. ``vain_per_useful``: pages
        predicted and not resident that are not selected, for each one that is. ``fetched_per_selected``: pages
        predicted and not resident, for each selected one.

    Raises
    ------
    ValueError
        If no miss is predicted.
    """
    selected = int(retrieved.sum())
    misses = retrieved & ~resident
    fetched = predicted & ~resident
    missed, useful = int(misses.sum()), int((misses & predicted).sum())
    if useful == 0:
        raise ValueError(f"0 of {missed} misses are predicted; the shares need at least 1")
    return {
        "hit_rate": 1 - missed / selected,
        "hit_rate_ahead": 1 - (missed - useful) / selected,
        "miss_recall": useful / missed,
        "vain_per_useful": (int(fetched.sum()) - useful) / useful,
        "fetched_per_selected": int(fetched.sum()) / selected,
    }


def record_ahead(
    model_path: Path, passages: dict[str, list[int]], context: int, steps: int
) -> dict[str, list[Trace]]:
    """Traces of every passage, by kind of query: read `context` tokens, then decode along the text.

    Parameters
    ----------
    model_path
        Checkpoint of a Llama or Qwen3 decoder.
    passages
        Token ids by name, ``context + steps + 1`` each.
    context, steps
        Tokens of the prompt, and decode steps after it.
    """
    recorder = AheadRecorder(model_path)
    result: dict[str, list[Trace]] = {kind: [] for kind in (TRUE, *PREDICTORS)}
    for tokens in tqdm(passages.values(), desc="passages", leave=False, disable=None):
        found = recorder.decode(tokens[:context], steps, tokens[context:])
        for kind, trace in found.items():
            result[kind].append(trace)
    return result
