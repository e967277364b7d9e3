#!/usr/bin/env python3
"""Is a page's estimate off by the same for queries that follow each other? What selections by corrected estimates gain.

    PYTHONPATH=scripts python -m studies.estimate_corrections

SmolLM2 reads real texts and decodes their own tokens behind some place of each; every step reads the same prompt of
whole pages. The first steps tell, for every page and KV head, the logarithm of the true over the estimated share of
attention; the steps after them are judged, with selections by

- ``plain``: estimates;
- ``corrected``: estimates and the mean of what the first steps told, up to 3 nats;
- ``halved``: half of it;
- ``followed``: what pages that were selected since have told moves it on;
- ``oracle``: true shares.

Writes ``docs/benchmarks/results/estimate_corrections_smollm2.json``: for each share of pages and way the KL divergence
of the next token from dense attention and its ratio to that of ``plain`` (geometric mean over texts, with half of its
95 % interval in logarithms), the relative error of attention outputs, and the share of attention that was selected.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from budgets.judge import Judged, flat, interval
from budgets.model import Prompt, RecordedModel
from budgets.rules import best
from budgets.steps import View
from common.measurement import MODEL, RESULTS, keep_result, result_document
from selection.texts import TEXTS, texts

TOLD = 8
"""First steps, which tell."""
MOST, LEAST_SHARE = 3.0, 1e-9
FOLLOWS = 0.5
"""Weight of what a selected page tells."""
WAYS = ("plain", "corrected", "halved", "followed", "oracle")


def chosen(way: str, view: View, mean: float) -> torch.Tensor:
    """Pages that a way selects, ``[H, T, N]``: ``mean`` of them."""
    count = mean * view.share.shape[2]
    if way in ("plain", "oracle"):
        return best(view.share if way == "plain" else view.true_share, count)
    estimated, true = ((share + LEAST_SHARE).log() for share in (view.share, view.true_share))
    told = (true - estimated).clamp(-MOST, MOST)
    correction = told[:, :TOLD].mean(1) * (0.5 if way == "halved" else 1.0)
    if way != "followed":
        return best((estimated + correction[:, None]).exp(), count)
    steps = []
    for step in range(estimated.shape[1]):
        found = best((estimated[:, step] + correction)[:, None].exp(), count)[:, 0]
        correction = correction + FOLLOWS * found * (told[:, step] - correction)
        steps.append(found)
    return torch.stack(steps, 1)


def judge(model: RecordedModel, prompts: list[Prompt], way: str, mean: float) -> Judged:
    """Decode every prompt by a way."""
    judged = Judged()
    for prompt in prompts:
        shares: list[torch.Tensor] = []

        def select(view: View, layer: int, shares: list[torch.Tensor] = shares) -> torch.Tensor:
            found = chosen(way, view, mean)
            shares.append(found.float().mean(-1))
            return found

        judged.add(prompt, *model.decode(prompt, select), shares)
    return judged


def figures(judged: Judged, plain: Judged) -> dict[str, float]:
    """Of the steps behind those that told."""
    mine, theirs = ([one[TOLD:].mean().item() for one in of.divergence] for of in (judged, plain))
    ratios = [math.log(one / other) for one, other in zip(mine, theirs, strict=True)]
    found = {
        "kl": fmean(mine),
        "kl_ratio": math.exp(fmean(ratios)),
        "kl_log_ratio_ci": interval(ratios),
        "error": float(flat([one[:, :, TOLD:] for one in judged.error]).mean()),
        "covered": float(flat([one[..., TOLD:] for one in judged.covered]).mean()),
    }
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Read, decode and write the result after every way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "estimate_corrections_smollm2.json")
    parser.add_argument("--end", type=int, default=4032, help="prompt length in tokens, whole pages")
    parser.add_argument("--steps", type=int, default=40, help="decode steps, those that tell among them")
    parser.add_argument("--kinds", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--means", type=float, nargs="+", default=[0.04, 0.1], help="shares of the pages")
    parser.add_argument("--page-size", type=int, default=32)
    parser.add_argument("--row-tokens", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    model = RecordedModel(options.model, options.page_size, options.row_tokens)
    prompts: list[Prompt] = []
    sources = list(texts(options.model, options.kinds, options.end, options.steps))
    for name, ids in tqdm(sources, desc="texts", disable=None):
        prompts += model.read(name, ids, [options.end], options.steps)
    metrics: dict[str, Any] = {
        "model": options.model.name,
        "prompts": [prompt.name for prompt in prompts],
        "steps_judged": options.steps - TOLD,
        "page_size": options.page_size,
        "row_tokens": options.row_tokens,
    }
    cases = [(mean, way) for mean in options.means for way in WAYS]
    plain: dict[float, Judged] = {}
    for mean, way in tqdm(cases, desc="ways", disable=None):
        judged = judge(model, prompts, way, mean)
        found = figures(judged, plain.setdefault(mean, judged))
        metrics.setdefault(f"{mean:g}", {})[way] = found
        metrics["minutes"] = round((time.monotonic() - began) / 60, 1)
        keep_result(options.out, result_document(options.out.stem, metrics))


if __name__ == "__main__":
    main()
