#!/usr/bin/env python3
"""How corrections of estimates are best applied: to ranks alone or to the tail too, whole or in part, early and late.

    PYTHONPATH=scripts python -m studies.applied_corrections
    PYTHONPATH=scripts python -m studies.applied_corrections --model .models/qwen2.5-coder-0.5b-instruct --paged 8000

A model reads real texts. The 16 tokens behind ``--paged`` ones, the last ones of a prompt, tell as in the server by how
much every page is estimated wrong. The text's own tokens are decoded right behind them and ``--behind`` tokens further
on; each step selects a share of the prompt's pages, and attends the others by estimates and everything behind
the pages exactly. `budgets.corrections.Way` says what a correction is; a case is one way to rank pages and one to
attend what is left out.

Writes ``docs/benchmarks/results/applied_corrections_smollm2.json``: for each share, tokens behind the prompt and case
the KL divergence of the next token from dense attention, the relative error of attention outputs, the ratios of both to
those of the reference case, the server's (geometric means over texts, with half of their 95 % intervals in logarithms,
by Student's t), the share of attention that was selected, and quantiles of the logarithm of the tail's estimated over
its true attention.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from tqdm import tqdm

from budgets.continued import Case, Continued, ContinuedModel, Found
from budgets.corrections import Way
from common.measurement import MODEL, RESULTS, keep_result, result_document, tokenizer
from rheo_sglang.evaluation.intervals import NORMAL_95
from rheo_sglang.evaluation.texts import CHARACTERS_PER_TOKEN, KINDS, passage
from selection.texts import TEXTS, quotation

TELL = 16
"""Last tokens of a prompt, which tell."""
PLAIN, SHARES, MASSES = Way(), Way("shares"), Way("masses")
REFERENCE = "ranks: shares"
CASES: dict[str, tuple[Way, Way]] = {
    "none": (PLAIN, PLAIN),
    REFERENCE: (SHARES, PLAIN),
    "ranks: masses": (MASSES, PLAIN),
    "ranks: shares x 0.25": (SHARES._replace(factor=0.25), PLAIN),
    "ranks: shares x 0.5": (SHARES._replace(factor=0.5), PLAIN),
    "ranks: shares x 0.75": (SHARES._replace(factor=0.75), PLAIN),
    "ranks: shares up to 2": (SHARES._replace(limit=2.0), PLAIN),
    "ranks: shares up to 4": (SHARES._replace(limit=4.0), PLAIN),
    "ranks: masses of the largest eighth": (MASSES._replace(largest=0.125), PLAIN),
    "ranks: masses of the largest quarter": (MASSES._replace(largest=0.25), PLAIN),
    "tail: masses": (PLAIN, MASSES),
    "both: shares": (SHARES, SHARES),
    "both: shares, in the tail centred": (SHARES, Way("centred")),
    "both: shares, in the tail one level": (SHARES, Way("level")),
    "both: shares, in the tail masses": (SHARES, MASSES),
    "both: shares, in the tail masses x 0.5": (SHARES, MASSES._replace(factor=0.5)),
    "both: shares, in the tail masses x 0.75": (SHARES, MASSES._replace(factor=0.75)),
    "both: shares, in the tail masses up to 1": (SHARES, MASSES._replace(limit=1.0)),
    "both: shares, in the tail masses up to 2": (SHARES, MASSES._replace(limit=2.0)),
    "both: shares, in the tail masses up to 4": (SHARES, MASSES._replace(limit=4.0)),
    "both: shares, in the tail masses of the largest quarter": (SHARES, MASSES._replace(largest=0.25)),
    "oracle tail": (SHARES, Way("oracle")),
    "oracle ranks": (Way("oracle"), PLAIN),
}


def texts(model: Path, kinds: list[str], seeds: int, prompt: int, behind: int) -> list[tuple[str, list[int]]]:
    """Names and token ids of texts, always the same ones."""
    encoder, found = tokenizer(model), []
    tokens = prompt + behind
    for seed in range(seeds):
        for kind in kinds:
            if kind in KINDS:
                ids = encoder.encode(passage(kind, CHARACTERS_PER_TOKEN * tokens, seed)).ids[:tokens]
            else:
                ids = quotation(encoder, prompt, behind, seed)
            found.append((f"{kind}/{seed}", ids))
    return found


def student_95(freedom: int) -> float:
    """Quantile 0.975 of Student's t by its expansion around the normal one, within 4 % from 3 degrees of freedom."""
    z = NORMAL_95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def log_ratio(mine: list[float], theirs: list[float]) -> dict[str, float]:
    """Geometric mean of the ratios, and half of its 95 % interval in logarithms."""
    ratios = [math.log(one / other) for one, other in zip(mine, theirs, strict=True)]
    count = len(ratios)
    half = student_95(count - 1) * stdev(ratios) / count**0.5 if count > 1 else 0.0
    return {"ratio": round(math.exp(fmean(ratios)), 4), "log_ci": round(half, 4)}


class Kept:
    """Figures of one case, text after text."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.error: list[float] = []
        self.covered: list[float] = []
        self.bias: list[torch.Tensor] = []

    def add(self, dense: torch.Tensor, found: Found) -> None:
        """Add a text's steps."""
        self.kl.append(float((dense.exp() * (dense - found.log_probabilities)).sum(-1).mean()))
        self.error.append(float(found.error.mean()))
        self.covered.append(float(found.covered.mean()))
        self.bias.append(found.bias.flatten())

    def metrics(self, reference: Kept) -> dict[str, Any]:
        """Means over texts, and ratios to another case's."""
        bias = torch.cat(self.bias)[::7]
        return {
            "kl": round(fmean(self.kl), 5),
            "kl_over": log_ratio(self.kl, reference.kl),
            "error": round(fmean(self.error), 4),
            "error_over": log_ratio(self.error, reference.error),
            "covered": round(fmean(self.covered), 4),
            "tail_bias": [round(float(bias.quantile(part)), 2) for part in (0.1, 0.5, 0.9)],
            "kl_of_texts": [round(one, 5) for one in self.kl],
        }


def main() -> None:
    """Read and decode text after text, and write the result after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "applied_corrections_smollm2.json")
    parser.add_argument("--paged", type=int, default=4032, help="tokens of whole pages")
    parser.add_argument("--behind", type=int, nargs="+", default=[0, 64, 200], help="tokens before the steps")
    parser.add_argument("--steps", type=int, default=16, help="decode steps, every time")
    parser.add_argument("--kinds", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--seeds", type=int, default=3, help="texts of each kind")
    parser.add_argument("--means", type=float, nargs="+", default=[0.04, 0.1], help="shares of the pages")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--page-size", type=int, default=32)
    parser.add_argument("--row-tokens", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    began = time.monotonic()
    model = ContinuedModel(options.model, options.page_size, options.row_tokens)
    prompt = options.paged + TELL
    kept: dict[tuple[float, int, str], Kept] = {}
    longest = max(options.behind) + options.steps
    sources = texts(options.model, options.kinds, options.seeds, prompt, longest)
    for number, (name, ids) in enumerate(tqdm(sources, desc="texts", disable=None)):
        text: Continued = model.read(name, ids, options.paged, TELL)
        for behind in options.behind:
            start = prompt + behind
            dense = model.decode(text, start, options.steps, None).log_probabilities
            for mean in options.means:
                for case in options.cases:
                    found = model.decode(text, start, options.steps, Case(*CASES[case], mean))
                    kept.setdefault((mean, behind, case), Kept()).add(dense, found)
        metrics: dict[str, Any] = {
            "model": options.model.name,
            "texts": [one for one, _ in sources[: number + 1]],
            "prompt": prompt,
            "steps": options.steps,
            "page_size": options.page_size,
            "row_tokens": options.row_tokens,
            "minutes": round((time.monotonic() - began) / 60, 1),
        }
        for (mean, behind, case), one in kept.items():
            under = metrics.setdefault(f"{mean:g}", {}).setdefault(f"{behind}", {})
            under[case] = one.metrics(kept[mean, behind, REFERENCE])
        keep_result(options.out, result_document(options.out.stem, metrics))


if __name__ == "__main__":
    main()
