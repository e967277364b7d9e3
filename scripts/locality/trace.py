"""trace: page scores of a real model over the decode steps that follow a long prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rheo_kernels.reference.score import score
from rheo_sglang.selection import SUMMARIES, ScoringSummary

ATTENTION = "recorded"


@dataclass(frozen=True)
class Trace:
    """Queries and keys of one continuation.

    Attributes
    ----------
    queries
        Rotated queries of every decode step, ``[steps, L, Hq, D]``, float32.
    keys
        Rotated keys of the prompt and the continuation, ``[L, H, T, D]``, float32.
    tokens
        The continuation, ``steps + 1`` token ids, of which the model read all but the last.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    tokens: list[int]

    def save(self, path: Path) -> None:
        """Write the trace to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"queries": self.queries, "keys": self.keys, "tokens": self.tokens}, path)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a trace that `save` wrote."""
        return cls(**torch.load(path))


class QueryRecorder:
    """Attention function that keeps the queries of every single-token forward pass.

    It is registered with ``transformers`` under `ATTENTION`; scaled dot-product attention does the work.
    """

    def __init__(self) -> None:
        self.steps: list[list[torch.Tensor]] = []

    def __call__(
        self, module: Any, query: torch.Tensor, *rest: Any, **keywords: Any
    ) -> tuple[torch.Tensor, None]:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if query.shape[2] == 1:
            if module.layer_idx == 0:
                self.steps.append([])
            self.steps[-1].append(query[0, :, 0].clone())
        return sdpa_attention_forward(module, query, *rest, **keywords)

    def queries(self) -> torch.Tensor:
        """What was recorded, ``[steps, L, Hq, D]``."""
        return torch.stack([torch.stack(step) for step in self.steps])


def load_model(model_path: Path) -> tuple[Any, QueryRecorder]:
    """The checkpoint in fp32 on the CPU, and the recorder that sees its queries."""
    from transformers import AttentionInterface, AutoModelForCausalLM

    recorder = QueryRecorder()
    AttentionInterface.register(ATTENTION, recorder)
    model = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=torch.float32, attn_implementation=ATTENTION
    ).eval()
    return model, recorder


@torch.inference_mode()
def decode(
    model: Any, recorder: QueryRecorder, prompt: list[int], steps: int, continuation: list[int] | None = None
) -> Trace:
    """Decode after a prompt for `steps` steps, one token at a time.

    Parameters
    ----------
    model, recorder
        From `load_model`.
    prompt
        Token ids, two or more.
    steps
        Decode steps after the one token that the prompt itself yields.
    continuation
        Tokens to decode, at least ``steps + 1``; greedy ones when omitted.
    """
    recorder.steps.clear()
    tokens: list[int] = []
    output = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
    for step in range(steps + 1):
        if continuation is None:
            tokens.append(int(output.logits[0, -1].argmax()))
        else:
            tokens.append(continuation[step])
        if step < steps:
            output = model(
                torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True
            )
    keys = torch.stack([layer.keys[0] for layer in output.past_key_values.layers])
    return Trace(recorder.queries(), keys, tokens)


def record(
    model_path: Path, prompts: list[list[int]], steps: int, continuations: list[list[int]] | None = None
) -> list[Trace]:
    """`decode` after every prompt; `model_path` is a checkpoint of a decoder that ``transformers`` knows."""
    model, recorder = load_model(model_path)
    return [
        decode(model, recorder, prompt, steps, continuations[index] if continuations else None)
        for index, prompt in enumerate(tqdm(prompts, desc="traces", unit="prompt", leave=False, disable=None))
    ]


def page_scores(
    trace: Trace, page_size: int, kind: str = "bound", grouping: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Page scores at every decode step, from the summaries that a cache would hold at that step.

    Pages are written once, so that the summaries of the last step serve all steps: what it says too early is
    said of the page being written, which is selected whatever its score.

    Parameters
    ----------
    trace
        What the model did.
    page_size
        Tokens a page.
    kind
        What summarises a page, ``"bound"`` (Quest's bounds) or ``"mean"``.
    grouping
        ``"mean"`` or ``"max"`` over the GQA group.

    Returns
    -------
    scores : torch.Tensor
        ``[steps, L, H, M]``, float32; ``-inf`` for pages that a step does not have yet.
    num_pages : torch.Tensor
        Pages at each step, ``[steps]``, int32.
    """
    steps, layers, _, dim = trace.queries.shape
    heads, total = trace.keys.shape[1:3]
    position = torch.arange(total)
    width = -(-total // page_size)
    tokens = position[-steps:] + 1
    num_pages = ((tokens + page_size - 1) // page_size).to(torch.int32)
    pages = torch.arange(width, dtype=torch.int32).expand(steps, width)
    scores = torch.empty((steps, layers, heads, width))
    summary = SUMMARIES[kind]()
    assert isinstance(summary, ScoringSummary)
    counts = (total - torch.arange(width) * page_size).clamp(max=page_size)
    for layer in range(layers):
        keys = torch.nn.functional.pad(trace.keys[layer], (0, 0, 0, width * page_size - total))
        paged = keys.unflatten(1, (width, page_size))
        summaries = summary.fold_chunk(paged.transpose(2, 3), paged, counts)
        score(
            trace.queries[:, layer],
            summary,
            summaries,
            pages,
            num_pages,
            dim**-0.5,
            grouping,
            scores[:, layer],
        )
    return scores, num_pages


def replay(found: list[Trace], page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`page_scores` of traces of one length: scores of all, ``[steps, C, M]``, and pages at each step, ``[steps]``."""
    scores, num_pages = zip(*(page_scores(trace, page_size) for trace in found), strict=True)
    return torch.cat([one.flatten(1, 2) for one in scores], 1), num_pages[0]
