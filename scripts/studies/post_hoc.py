#!/usr/bin/env python3
"""Whether attention that is known afterwards tells as well which pages to keep as the selector's own estimates.

    PYTHONPATH=scripts python -m studies.post_hoc --folder traces --page-size 16

Reads the texts of the sessions that `studies.trace_workloads` left in the folder with SmolLM2 and decodes their answers
densely, which gives the true share of attention of each page in every step (*post hoc*: a dense step knows it when it
is over), beside the share that the page summaries estimate. Pages are selected by the estimates, and policy
``importance`` is driven by one signal or another: the estimates of every step, the true shares of every step, or those
of the prompt's last 16 tokens alone, their mean or maximum. Writes ``docs/benchmarks/results/post_hoc_cpu.json``: hit
rates by signal, their ratio to those by estimates, and rank correlations of the signals with the estimates.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from budgets.model import Prompt, RecordedModel
from common.measurement import MODEL, tokenizer, write_result
from rheo_kernels.reference import select
from rheo_sglang.config import PREWARM, RheoConfig
from rheo_sglang.prefill.seed import SEED_QUERIES
from rheo_sglang.replay.compact import Replayable
from rheo_sglang.replay.sweep import Case, replay
from rheo_sglang.traces.events import Event, Prompts, Step
from workloads.sessions import SESSIONS

CAPACITIES = (1.25, 2.5)
BUDGET = 0.1
ROW_TOKENS = 4
STEPS = 64
"""Tokens that are decoded behind the last whole page, the prompt's last ones among them."""
MOST_TEXTS, MOST_PROMPTS = 1, 3
"""Texts of a session that are read, where requests do not follow one another in one, and prompts of each, the last."""
LRU, ESTIMATES = "lru", "estimates"


class Text(NamedTuple):
    """Tokens of a request's prompt and answer, and the lengths of the prompts that end in it."""

    ids: list[int]
    prompts: list[int]


class Decoded(NamedTuple):
    """One request: shares of attention by page, in every layer, KV head and step, ``[L * H, T, N]``."""

    estimated: torch.Tensor
    true: torch.Tensor
    prompt_steps: int
    """How many of the steps are tokens of the prompt."""


def texts(folder: Path, name: str, model: Path) -> list[Text]:
    """What a session's requests read; those whose text begins a later one's are parts of that."""
    encode = tokenizer(model).encode
    requests = json.loads((folder / f"{name}.json").read_text())["requests"]
    found: list[Text] = []
    for request in reversed(requests):
        ids = encode(request["prompt"]).ids
        later = next((one for one in found if one.ids[: len(ids)] == ids), None)
        if later is None:
            found.append(Text([*ids, *request["answer"]], [len(ids)]))
        else:
            later.prompts.insert(0, len(ids))
    return [Text(one.ids, one.prompts[-MOST_PROMPTS:]) for one in found[:MOST_TEXTS]]


def decoded(model: RecordedModel, name: str, text: Text, steps: int) -> Iterator[Decoded]:
    """Decode behind each prompt of a text."""
    page = model.page_size
    ends = [(length - SEED_QUERIES) // page * page for length in text.prompts]
    ends = [end for end in ends if end + steps <= len(text.ids)]
    for end, prompt in zip(ends, model.read(name, text.ids, ends, steps), strict=True):
        length = next(one for one in text.prompts if (one - SEED_QUERIES) // page * page == end)
        yield _decoded(prompt, length - end)


def _decoded(prompt: Prompt, prompt_steps: int) -> Decoded:
    estimated, true = (
        torch.cat([getattr(view, field) for view in prompt.views]) for field in ("share", "true_share")
    )
    return Decoded(estimated, true, prompt_steps)


def signals(one: Decoded) -> dict[str, torch.Tensor]:
    """What drives the policy, ``[L * H, T, N]``: in the prompt's steps and in those that decode."""
    tail = one.true[:, one.prompt_steps - SEED_QUERIES : one.prompt_steps]
    return {
        ESTIMATES: one.estimated,
        "post hoc, every step": one.true,
        "post hoc, prompt's mean": tail.mean(1, keepdim=True).expand_as(one.true),
        "post hoc, prompt's maximum": tail.amax(1, keepdim=True).expand_as(one.true),
    }


def events(one: Decoded, signal: torch.Tensor, page_size: int) -> tuple[list[Event], int]:
    """A prompt and decode steps whose selection is the estimates' and whose scores are the signal's, and its size."""
    rows, _, count = one.estimated.shape
    pages = torch.arange(1, count + 2, dtype=torch.int32)[None].numpy()
    tokens = np.array([count * page_size + 1], dtype=np.int32)
    num_pages = torch.tensor([count + 1], dtype=torch.int32)
    config = RheoConfig()
    cap = math.ceil(BUDGET * (count + 1))
    mass = signal[:, one.prompt_steps - SEED_QUERIES : one.prompt_steps].mean(1)
    seeds = torch.nn.functional.pad(mass, (0, 1))[:, None, None].numpy()
    caps = np.array([cap], dtype=np.int32)
    found: list[Event] = [Prompts(["request"], tokens, pages, seeds, caps, pages[0, :count])]
    for step in range(one.prompt_steps, one.estimated.shape[1]):
        scores, keyed = (torch.nn.functional.pad(part[:, step], (0, 1)) for part in (signal, one.estimated))
        chosen = select(
            keyed[None],
            num_pages,
            torch.full((1, rows), cap, dtype=torch.int32),
            config.sink_pages,
            config.window_pages,
            cap,
        )
        number = (chosen >= 0).sum(2, dtype=torch.int32)
        shaped = (part.transpose(0, 1)[:, :, None] for part in (scores[None], chosen, 0 * number, number))
        found.append(Step(step, ["request"], tokens, pages, *(part.numpy() for part in shaped)))
    return found, cap


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Spearman's, of pages, mean over rows and steps of ``[R, T, N]``."""
    ranks = [part.argsort(-1).argsort(-1).to(torch.float32) for part in (one, other)]
    centred = [part - part.mean(-1, keepdim=True) for part in ranks]
    product = (centred[0] * centred[1]).mean(-1)
    return float((product / (centred[0].square().mean(-1) * centred[1].square().mean(-1)).sqrt()).mean())


def describe(requests: list[Decoded], page_size: int) -> dict[str, Any]:
    """Hit rates by signal and capacity, and rank correlations with the estimates, of one session."""
    config = RheoConfig()
    names = [LRU, *signals(requests[0])]
    hits = {(name, size): 0 for name in names for size in CAPACITIES}
    selected = 0
    correlations: dict[str, list[float]] = {name: [] for name in names if name not in (LRU, ESTIMATES)}
    for one in requests:
        rows, count = one.estimated.shape[0], one.estimated.shape[2]
        for name, signal in {LRU: one.estimated, **signals(one)}.items():
            found, cap = events(one, signal, page_size)
            run = Replayable(found, count + 2, rows, 1, page_size, cap)
            policy = LRU if name == LRU else "importance"
            for size in CAPACITIES:
                case = Case(policy, size, 0, None, PREWARM)
                outcome = replay(run, case, math.ceil(size * cap), config.importance_alpha)
                hits[name, size] += int(outcome.hits.sum())
            if name in correlations:
                decoding = slice(one.prompt_steps, None)
                correlations[name].append(correlation(signal[:, decoding], one.estimated[:, decoding]))
        selected += int(outcome.selected.sum())
    rates = {name: {f"{size:g}": hits[name, size] / selected for size in CAPACITIES} for name in names}
    return {
        "requests": len(requests),
        "pages": [one.estimated.shape[2] for one in requests],
        "steps": sum(one.estimated.shape[1] - one.prompt_steps for one in requests),
        "hit_rate": {name: {size: round(rate, 4) for size, rate in of.items()} for name, of in rates.items()},
        "quality": {
            name: {size: round(rates[name][size] / rates[ESTIMATES][size], 4) for size in rates[name]}
            for name in correlations
        },
        "rank_correlation": {name: round(float(np.mean(found)), 4) for name, found in correlations.items()},
    }


def main() -> None:
    """Study all sessions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the traces are")
    parser.add_argument("--sessions", nargs="+", choices=SESSIONS, default=["chat", "questions", "agent"])
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint directory")
    options = parser.parse_args()
    model = RecordedModel(options.model, options.page_size, ROW_TOKENS)
    metrics: dict[str, Any] = {"model": options.model.name, "page_size": options.page_size, "sessions": {}}
    for name in tqdm(options.sessions, desc="sessions", leave=False, disable=None):
        found = [
            one
            for text in texts(options.folder, f"{name}-{options.page_size}", options.model)
            for one in decoded(model, name, text, STEPS)
        ]
        metrics["sessions"][name] = describe(found, options.page_size)
        print(name, json.dumps(metrics["sessions"][name]), flush=True)
    every = [one["quality"] for one in metrics["sessions"].values()]
    metrics["posthoc_quality"] = min(of[size] for quality in every for of in quality.values() for size in of)
    write_result("post_hoc_cpu", metrics)


if __name__ == "__main__":
    main()
