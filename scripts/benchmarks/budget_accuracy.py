#!/usr/bin/env python3
"""Accuracy and KL against the mean budget, and answers that are wrong with confidence: how budget rules are judged.

    PYTHONPATH=scripts python -m benchmarks.budget_accuracy --prompts FOLDER --servers servers.json --work FOLDER \\
        --measured selection_coder.json

It reads what ``benchmarks.selection_coder`` kept in its working folder. For every server NAME:

- ``NAME_mean_budget``: share of the pages that steps selected;
- ``NAME_kl``: from dense attention over all texts;
- ``NAME_accuracy``: mean over the prompts of recall and RULER; ``NAME_accuracy_difference`` from dense, with ``_ci``;
- ``adversarial_NAME``: over prompts whose facts are in pages of low importance (recall's ``buried``, and the late
  answers), with ``_difference`` and ``_ci``;
- ``tasks_NAME``: mean score of every task and length, in points of 100;
- ``silent_failures_NAME``: prompts that dense attention answers right and NAME wrong, with at least the confidence
  that dense attention has in half of its right answers; ``failures_NAME`` with any confidence; ``failure_auc_NAME``:
  in what share of pairs such a failure has less confidence than one of NAME's right answers; ``flagged_NAME``: share
  of NAME's right answers with no more confidence than the surest failure, so what a level that catches all of them
  would flag as well;
- ``confidence_NAME``: mean confidence of right and of wrong answers, and the AUC by which it tells them apart.

The confidence of a reply is the geometric mean of its tokens' probabilities.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.selection_coder import ABOUT_FILE, DENSE
from common.measurement import RESULTS, keep_result, measured_where, result_document
from rheo_sglang.evaluation.divergence import answered, compare, interval
from rheo_sglang.evaluation.intervals import paired_difference
from rheo_sglang.evaluation.measured import Measured, Prompts, length_name

BURIED = "buried/"
RIGHT = 1.0


def scores_of(measured: Measured) -> dict[str, float]:
    """Of all conversations."""
    return {key: score for scores in measured.scores.values() for key, score in scores.items()}


def confidences_of(measured: Measured) -> dict[str, float]:
    """Of all conversations."""
    return {key: one for found in measured.confidences.values() for key, one in found.items()}


def adversarial_scores(prompts: Prompts, measured: Measured) -> dict[str, float]:
    """Of prompts whose facts lie where attention has not been."""
    found = {key: score for key, score in scores_of(measured).items() if key.startswith(BURIED)}
    steps = measured.forced.get("late", {})
    return found | {
        prompt.key: float(answered(prompt, steps[prompt.key]))
        for prompt in prompts.late
        if prompt.key in steps
    }


def difference(ours: dict[str, float], dense: dict[str, float], name: str) -> dict[str, float]:
    """Mean, difference from dense and half of its interval, in points of 100."""
    keys = sorted(ours.keys() & dense.keys())
    if not keys:
        return {}
    above, half = paired_difference([ours[key] for key in keys], [dense[key] for key in keys])
    return {
        name: round(100 * fmean(ours[key] for key in keys), 2),
        f"{name}_difference": round(100 * above, 2),
        f"{name}_ci": round(100 * half, 2),
    }


def separation(right: list[float], wrong: list[float]) -> float | None:
    """Chance that a right answer has more confidence than a wrong one (area under the ROC curve)."""
    if not right or not wrong:
        return None
    above = sum((one > other) + 0.5 * (one == other) for one in right for other in wrong)
    return round(above / (len(right) * len(wrong)), 3)


def calibration(measured: Measured) -> dict[str, Any]:
    """How far confidence goes with being right."""
    scores, confidences = scores_of(measured), confidences_of(measured)
    right = [confidences[key] for key, score in scores.items() if key in confidences and score == RIGHT]
    wrong = [confidences[key] for key, score in scores.items() if key in confidences and score < RIGHT]
    return {
        "right": round(fmean(right), 4) if right else None,
        "wrong": round(fmean(wrong), 4) if wrong else None,
        "auc": separation(right, wrong),
    }


def failures(name: str, measured: Measured, dense: Measured) -> dict[str, Any]:
    """Answers that dense attention has right and this server wrong, and how far confidence shows them."""
    theirs, sure = scores_of(dense), confidences_of(dense)
    ours, confidences = scores_of(measured), confidences_of(measured)
    level = median(sure[key] for key, score in theirs.items() if score == RIGHT and key in sure)
    failed = [key for key, score in ours.items() if score < RIGHT and theirs.get(key) == RIGHT]
    right = [confidences[key] for key, score in ours.items() if score == RIGHT and key in confidences]
    surest = max((confidences.get(key, 0.0) for key in failed), default=0.0)
    return {
        f"failures_{name}": len(failed),
        f"silent_failures_{name}": sum(confidences.get(key, 0.0) >= level for key in failed),
        f"failure_auc_{name}": separation(right, [confidences[key] for key in failed if key in confidences]),
        f"flagged_{name}": round(fmean(one <= surest for one in right), 3) if right else None,
    }


def tasks(prompts: Prompts, measured: Measured) -> dict[str, float]:
    """Mean score of every task and length, the late answers' too, in points of 100."""
    found: dict[str, list[float]] = {}
    for suite, scores in measured.scores.items():
        for one in prompts.conversations[suite].conversations:
            found.setdefault(f"{one.task} {length_name(one.length)}", []).append(scores[one.key])
    steps = measured.forced.get("late", {})
    for prompt in prompts.late if steps else ():
        right = float(answered(prompt, steps[prompt.key]))
        found.setdefault(f"late {length_name(len(prompt.tokens))}", []).append(right)
    return {name: round(100 * fmean(scores), 1) for name, scores in found.items()}


def figures(name: str, prompts: Prompts, measured: Measured, dense: Measured) -> dict[str, Any]:
    """Everything that is said of one server but its budget."""
    found: dict[str, Any] = {
        **difference(scores_of(measured), scores_of(dense), f"{name}_accuracy"),
        **difference(
            adversarial_scores(prompts, measured), adversarial_scores(prompts, dense), f"adversarial_{name}"
        ),
        f"confidence_{name}": calibration(measured),
        f"tasks_{name}": tasks(prompts, measured),
    }
    if measured.steps and dense.steps:
        kl = [compare(dense.steps[one.key], measured.steps[one.key]).kl for one in prompts.texts]
        found |= {f"{name}_kl": round(fmean(kl), 5), f"{name}_kl_ci": round(interval(kl), 5)}
    if confidences_of(dense) and name != DENSE:
        found |= failures(name, measured, dense)
    return found


def main() -> None:
    """Read what servers said and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="folder of selection_prompts")
    parser.add_argument(
        "--servers", type=Path, required=True, help="JSON file that selection_coder was given"
    )
    parser.add_argument("--work", type=Path, required=True, help="its working folder")
    parser.add_argument("--model", default="qwen2.5-coder-1.5b-instruct", help="whose answers they are")
    parser.add_argument(
        "--measured", type=Path, required=True, help="result of selection_coder: date, machine and versions"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "budget_accuracy.json")
    options = parser.parse_args()
    servers: dict[str, str] = json.loads(options.servers.read_text())
    prompts = Prompts.load(options.prompts)
    dense = Measured.load(options.work / DENSE, prompts)
    metrics: dict[str, Any] = {
        "model": options.model,
        "servers": servers,
        "prompts": len(scores_of(dense)),
        "prompts_late": len(prompts.late),
        "right_dense": sum(score == RIGHT for score in scores_of(dense).values()),
    }
    for name in servers:
        measured = Measured.load(options.work / name, prompts)
        metrics |= figures(name, prompts, measured, dense)
        about = json.loads((options.work / name / ABOUT_FILE).read_text())
        if f"selected_share_{name}" in about:
            metrics[f"{name}_mean_budget"] = about[f"selected_share_{name}"]
    keep_result(options.out, measured_where(result_document("budget_accuracy", metrics), options.measured))
    print(json.dumps({key: value for key, value in metrics.items() if key != "servers"}, indent=1))


if __name__ == "__main__":
    main()
