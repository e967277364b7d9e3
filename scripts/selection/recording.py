"""Recording: the queries, keys and values of a model that read a real text with dense attention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from selection.layer import Layer

CHUNK = 2048


class Recording(NamedTuple):
    """What every layer of a dense model computed of one text."""

    name: str
    ends: list[int]
    """Lengths of the prompts whose decode steps are known: the text's own tokens follow each."""
    scale: float
    """Softmax scale."""
    queries: torch.Tensor
    """Of the steps behind each end, ``[layers, ends, H, T, G, D]``, float32."""
    keys: torch.Tensor
    """Of the whole text, ``[layers, H, L, D]``, float32."""
    values: torch.Tensor

    def layer(self, index: int, end: int) -> Layer:
        """A layer's steps behind the prompt of ``self.ends[end]`` tokens."""
        queries, length = self.queries[index, end], self.ends[end]
        last = length + queries.shape[1]
        keys, values = self.keys[index, :, :last], self.values[index, :, :last]
        return Layer(queries, keys, values, length, self.scale)


class Recorder:
    """Reads texts with a model of transformers and keeps what its attention is given.

    A step that decodes the text's own token sees what prefill computes for that token, so one pass has it all.

    Parameters
    ----------
    checkpoint
        Folder of a model with grouped-query attention. It is run in float32.
    """

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AttentionInterface, AutoModelForCausalLM
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        AttentionInterface.register("recorded", self._attend)
        AttentionMaskInterface.register("recorded", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        self.model.set_attn_implementation("recorded")
        self._queries: list[list[torch.Tensor]] = []
        self._scale = 0.0

    @torch.inference_mode()
    def read(self, name: str, ids: list[int], ends: list[int], steps: int) -> Recording:
        """Read a text.

        Parameters
        ----------
        name
            Of the text.
        ids
            Its tokens, ``max(ends) + steps`` or more.
        ends
            Lengths of prompts.
        steps
            Tokens to decode behind each.
        """
        from transformers import DynamicCache

        last = max(ends) + steps
        tokens = torch.tensor([ids[:last]])
        cache: Any = DynamicCache(config=self.model.config)
        self._queries = [[] for _ in range(self.model.config.num_hidden_layers)]
        for start in range(0, last, CHUNK):
            self.model(input_ids=tokens[:, start : start + CHUNK], past_key_values=cache, logits_to_keep=1)
        keys = torch.stack([layer.keys[0] for layer in cache.layers])
        whole = torch.stack([torch.cat(parts, 1) for parts in self._queries])
        grouped = whole.unflatten(1, (keys.shape[1], -1)).transpose(2, 3)
        queries = torch.stack([grouped[:, :, end : end + steps] for end in ends], 1).contiguous()
        values = torch.stack([layer.values[0] for layer in cache.layers])
        return Recording(name, ends, self._scale, queries, keys, values)

    def _attend(self, module: Any, query: torch.Tensor, *rest: Any, **more: Any) -> tuple[torch.Tensor, None]:
        """Attention function as `transformers.AttentionInterface` calls it: dense."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        self._queries[module.layer_idx].append(query[0])
        self._scale = more["scaling"]
        return sdpa_attention_forward(module, query, *rest, **more)


def recordings(
    checkpoint: Path, texts: Iterator[tuple[str, list[int]]], ends: list[int], steps: int, folder: Path | None
) -> Iterator[Recording]:
    """Recordings of texts, in turn.

    Parameters
    ----------
    checkpoint, ends, steps
        See `Recorder`.
    texts
        Names and token ids.
    folder
        Where recordings are kept: what is there already is read instead of computed. None keeps nothing.
    """
    recorder = None
    for name, ids in texts:
        path = None if folder is None else folder / f"{checkpoint.name}-{name}-{max(ends)}.pt"
        if path is not None and path.exists():
            kept = Recording(*torch.load(path, mmap=True))
            if kept.ends == ends and kept.queries.shape[3] == steps:
                yield kept
                continue
        recorder = recorder or Recorder(checkpoint)
        recording = recorder.read(name, ids, ends, steps)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(tuple(recording), path)
        yield recording
