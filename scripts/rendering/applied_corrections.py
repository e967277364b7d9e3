#!/usr/bin/env python3
"""Draw the tables of docs/quality.md on how corrections are applied, from applied_corrections_*.json.

PYTHONPATH=scripts python -m rendering.applied_corrections
"""

from __future__ import annotations

import itertools
import json
import math
from statistics import fmean
from typing import Any

from common.measurement import RESULTS
from rendering.marked_page import fill
from rendering.quality import PAGE
from rendering.results import provenance, table
from studies.applied_corrections import REFERENCE, log_ratio

NAME = "applied_corrections"
PLACES = {"0": "steps 1 to 16", "200": "200 tokens on"}
MODELS = {"smollm2": "SmolLM2", "coder": "Coder"}
RANKS = {
    "none": "nothing",
    "ranks: shares x 0.25": "a quarter of the corrections",
    "ranks: shares x 0.5": "half of them",
    "ranks: shares x 0.75": "three quarters",
    "ranks: shares": "**whole, up to 3 nats: the server**",
    "ranks: shares up to 2": "up to 2 nats",
    "ranks: shares up to 4": "up to 4 nats",
    "ranks: masses": "attention for shares",
    "ranks: masses of the largest quarter": "the same, a quarter of the pages",
    "ranks: masses of the largest eighth": "the same, an eighth of the pages",
    "oracle ranks": "*oracle*: true shares",
}
TAILS = {
    "ranks: shares": "**nothing: the server**",
    "both: shares": "shares",
    "both: shares, in the tail centred": "shares less their median",
    "both: shares, in the tail masses": "attention, up to 3 nats",
    "both: shares, in the tail masses up to 1": "up to 1 nat",
    "both: shares, in the tail masses up to 2": "up to 2 nats",
    "both: shares, in the tail masses up to 4": "up to 4 nats",
    "both: shares, in the tail masses x 0.5": "half of it",
    "both: shares, in the tail masses x 0.75": "three quarters",
    "both: shares, in the tail masses of the largest quarter": "a quarter of the pages",
    "both: shares, in the tail one level": "one number for all pages",
    "tail: masses": "attention, and ranks nothing",
    "oracle tail": "*oracle*: true attention",
}


def ratio(found: dict[str, float]) -> str:
    """A ratio and its 95 % interval."""
    if found["log_ci"] == 0:
        return f"{found['ratio']:.2f}"
    low, high = (found["ratio"] * math.exp(sign * found["log_ci"]) for sign in (-1, 1))
    return f"{found['ratio']:.2f} ({low:.2f}, {high:.2f})"


def shares(metrics: dict[str, Any]) -> list[str]:
    """Shares of the pages that were selected."""
    return [name for name in metrics if isinstance(metrics[name], dict)]


def divergence(metrics: dict[str, Any], case: str, places: list[str]) -> str:
    """KL over the reference's, in logarithms the mean of all shares and places of a text."""
    logs = [
        [
            math.log(one / other)
            for one, other in zip(
                *(metrics[share][place][name]["kl_of_texts"] for name in (case, REFERENCE)), strict=True
            )
        ]
        for share in shares(metrics)
        for place in places
    ]
    texts = [fmean(text) for text in zip(*logs, strict=True)]
    return ratio(log_ratio([math.exp(text) for text in texts], [1.0] * len(texts)))


def errors(metrics: dict[str, Any], case: str, place: str) -> list[str]:
    """Error of outputs over the reference's, for each share."""
    return [ratio(metrics[share][place][case]["error_over"]) for share in shares(metrics)]


def tails(results: dict[str, dict[str, Any]]) -> str:
    """A row for each way to correct the tail: KL of all steps, and error of outputs in the first 16."""
    header = ["the tail is corrected by"]
    for model, result in results.items():
        header.append(f"{MODELS[model]}: KL")
        header += [f"error at {float(share):.0%}" for share in shares(result["metrics"])]
    rows = []
    for case, words in TAILS.items():
        row = [words]
        for result in results.values():
            metrics = result["metrics"]
            measured = metrics[shares(metrics)[0]]
            if case in measured["0"]:
                row += [divergence(metrics, case, list(measured)), *errors(metrics, case, "0")]
            else:
                row += [""] * (1 + len(shares(metrics)))
        rows.append(row)
    return table(header, rows)


def ranks(model: str, metrics: dict[str, Any]) -> str:
    """A row for each way to correct ranks: the first 16 steps, and 16 that are 200 tokens behind the prompt."""
    header = [f"{MODELS[model]}: ranks are corrected by"]
    for words in PLACES.values():
        header.append(f"KL, {words}")
        header += [f"error at {float(share):.0%}" for share in shares(metrics)]
    rows = []
    for case, words in RANKS.items():
        if case in metrics[shares(metrics)[0]]["0"]:
            cells = [[divergence(metrics, case, [place]), *errors(metrics, case, place)] for place in PLACES]
            rows.append([words, *itertools.chain(*cells)])
    return table(header, rows)


def tables(results: dict[str, dict[str, Any]]) -> str:
    """Tails, ranks, and where the figures come from."""
    parts = [tails(results), *(ranks(model, result["metrics"]) for model, result in results.items())]
    texts = ", ".join(
        f"{MODELS[model]} {len(result['metrics']['texts'])} texts with prompts of {result['metrics']['prompt']} tokens"
        for model, result in results.items()
    )
    return "\n\n".join([*parts, f"{texts}.", *(provenance(result) for result in results.values())])


def kept() -> dict[str, dict[str, Any]]:
    """The results, by model."""
    return {model: json.loads((RESULTS / f"{NAME}_{model}.json").read_text()) for model in MODELS}


def main() -> None:
    """Replace what stands between the markers of the page."""
    fill(PAGE, NAME, tables(kept()))


if __name__ == "__main__":
    main()
