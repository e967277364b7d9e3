#!/usr/bin/env python3
"""Write the figures of docs/quality.md from the result files.

PYTHONPATH=scripts python -m rendering.quality
"""

from __future__ import annotations

import itertools
import json
import shlex
from typing import Any

from common.measurement import REPOSITORY
from rendering import answers_kept, budget_rules, selection_quality
from rendering.marked_page import fill
from rendering.quality_tables import figure, load, rows_of
from rheo_sglang.config import ESTIMATES

SUITES = {"recall": "recall", "RULER": "ruler"}
SCORES = [f"{words}, points from dense" for words in SUITES]
PAGE = REPOSITORY / "docs" / "quality.md"
PATH_PARTS = {
    "estimate": "estimate",
    "log_shares": "shares",
    "select_path": "estimate, shares, select, look up",
    "attend": "attend the selected",
    "attend_with_tail": "attend both",
    "path": "**all but attending the selected**",
    "path_floor": "floor",
    "allow": "the budget of a floor of 0.9, where one is set",
    "working_sets": "counting working sets, all layers, once in 16 steps",
}


def settings_of(arguments: str) -> dict[str, Any]:
    """What a server of rheo was configured with, from its command line."""
    words = shlex.split(arguments)
    found = {"page_size": 0, "summary": ESTIMATES, "budget_ratio": 1.0, "budget_min_pages": 0, "tail": True}
    for flag, value in itertools.pairwise(words):
        if flag == "--rheo-config":
            found |= json.loads(value)
        elif flag == "--page-size":
            found["page_size"] = int(value)
    return found


def answers() -> str:
    """Divergence, recall and RULER of every configuration."""
    result = load("selection_coder")
    metrics = result["metrics"]
    lines = [
        [
            "summary, page",
            "selects",
            "summaries, % of KV",
            "KL 8K",
            "KL 32K",
            "same first choice 8K",
            "32K",
            *SCORES,
        ]
    ]
    for name, arguments in metrics["servers"].items():
        if name == "dense":
            continue
        found = settings_of(arguments)
        estimates = found["summary"].startswith("subcentroids")
        tail = "" if found["tail"] or not estimates else ", no tail"
        key = {"bound": "_bound", "subcentroids2": f"_p{found['page_size']}n2"}.get(
            found["summary"], "_p16n4" if found["page_size"] == 16 else ""
        )
        tokens = found["budget_min_pages"] * found["page_size"]
        lines.append(
            [
                f"`{found['summary']}`, {found['page_size']}{tail}",
                f"{found['budget_ratio']:.0%}, {tokens} tokens or more",
                f"{100 * metrics[f'metadata_share{key}']:.1f}",
                figure(metrics, f"kl_{name}_8k"),
                figure(metrics, f"kl_{name}_32k"),
                figure(metrics, f"top1_{name}_8k"),
                figure(metrics, f"top1_{name}_32k"),
                *points_from_dense(metrics, name),
            ]
        )
    return f"{rows_of(lines)}\n\n{dense_scores(result)}"


def points_from_dense(metrics: dict[str, Any], name: str) -> list[str]:
    """A server's cells under `SCORES`."""
    return [figure(metrics, f"{suite}_{name}_difference", 100, 1) for suite in SUITES.values()]


def dense_scores(result: dict[str, Any]) -> str:
    """What differences are from, and where all was measured."""
    metrics = result["metrics"]
    scores = (f"{words} {figure(metrics, f'{suite}_dense', 100, 1)}" for words, suite in SUITES.items())
    return f"Dense attention: {', '.join(scores)} of 100. {result['machine']}; {result['date']}."


def answers_of_smollm2() -> str:
    """Divergence, recall and RULER of SmolLM2 at 8K tokens."""
    result = load("selection_smollm2")
    metrics = result["metrics"]
    lines = [["summary", "selects", "KL", "same first choice", *SCORES]]
    for name, arguments in metrics["servers"].items():
        if name == "dense":
            continue
        found = settings_of(arguments)
        share = "the default" if name == "default" else f"{found['budget_ratio']:.0%}"
        lines.append(
            [
                f"`{found['summary']}`",
                f"{share}: {metrics[f'selected_share_{name}']:.0%} of all pages",
                figure(metrics, f"kl_{name}_8k"),
                figure(metrics, f"top1_{name}_8k"),
                *points_from_dense(metrics, name),
            ]
        )
    return f"{rows_of(lines)}\n\n{dense_scores(result)}"


def selection_path() -> str:
    """What selecting by estimates takes on a GPU, by page and row length."""
    result = load("estimate_kernels_gpu")
    metrics = result["metrics"]
    shapes = [(32, 4), (32, 2), (16, 4), (16, 2)]
    lines = [
        [
            "microseconds a layer, batch 1 / 8",
            *(f"page {page}, rows of {row} tokens" for page, row in shapes),
        ]
    ]
    for key, words in PATH_PARTS.items():
        cells = []
        for page, row in shapes:
            one, eight = (metrics[f"{key}_us_page{page}_rows{row}_bs{batch}_128k"] for batch in (1, 8))
            cells.append(f"{one:.1f} / {eight:.0f}")
        lines.append([words, *cells])
    return f"{rows_of(lines)}\n\n`{result['command']}` on {result['machine']}; {result['date']}."


RENDERED = {
    "answers": answers,
    "smollm2": answers_of_smollm2,
    "default": answers_kept.default,
    "lost": answers_kept.lost,
    "other-settings": answers_kept.others,
    "eight-bits": answers_kept.eight_bits,
    "selection-path": selection_path,
    "budget-rules": budget_rules.table,
    "selection-quality": selection_quality.tables,
}


def main() -> None:
    """Fill the page's marked parts."""
    for name, render in RENDERED.items():
        fill(PAGE, name, render())
    budget_rules.plot()
    selection_quality.plot()


if __name__ == "__main__":
    main()
