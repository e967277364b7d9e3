#!/usr/bin/env python3
"""Which budget rule is worth having, at an equal mean budget, and what tells good steps from bad ones.

    PYTHONPATH=scripts python -m studies.budget_rules --out docs/benchmarks/results/budget_rules_smollm2.json
    PYTHONPATH=scripts python -m studies.budget_rules --model .models/qwen2.5-coder-0.5b-instruct --rules fixed ...

Real texts of four kinds and an agent's session that ends in a quotation are read once; behind three places of each the
model decodes the text's own tokens. Every step reads the same prompt of whole pages; one sink page, two window
pages and the tokens of the steps before it are always attended. Every rule's parameter is found by bisection on what
the dense model's steps show it, such that it selects as much as the fixed share does over all prompts, layers,
heads and steps; then the model decodes with it in all layers, what is left out attended by its estimates. Adds every
rule at every mean to the result: KL divergence of the next token from dense attention (``kl``), its ratio to the
fixed share's, prompt by prompt, relative error of attention outputs, true and estimated share of the attention.
*floors* grow a fixed share where it holds less than a floor of the estimated attention; *signals* say how well
figures that a server has tell steps of much divergence from others.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from budgets.judge import Judged, flat, separation
from budgets.model import Prompt, RecordedModel
from budgets.rules import RULES, Where, floored
from budgets.steps import View
from common.measurement import MODEL, RESULTS, keep_result, result_document
from selection.texts import TEXTS, texts

FLOORS = (0.7, 0.8, 0.9, 0.95)
BAD = 0.1
"""Nats from which a step counts as bad: about where the first choice begins to change."""
BISECTIONS, CALIBRATED = 14, 4
"""Bisections of a parameter, on every fourth step."""


def selected(rule: str, parameter: float, prompts: list[Prompt], mean: float, profiles: list[Any]) -> float:
    """Mean share of the pages that a rule selects of what the dense model shows."""
    shares = [
        RULES[rule](View(*(one[:, ::CALIBRATED] for one in view)), parameter, Where(index, mean, profile))
        .float()
        .mean()
        for prompt, profile in zip(prompts, profiles, strict=True)
        for index, view in enumerate(prompt.views)
    ]
    return float(torch.stack(shares).mean())


def parameter_of(rule: str, prompts: list[Prompt], mean: float, profiles: list[Any]) -> float:
    """The parameter with which a rule selects ``mean`` of the pages."""
    rising = rule in ("fixed", "coverage", "bounded_coverage", "heads", "profile") or rule.startswith("fixed")
    low, high = (0.0, 8.0 if rule == "profile" else 1.0) if rising else (-30.0, 3.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        more = selected(rule, middle if rising else 2.718281828**middle, prompts, mean, profiles) < mean
        low, high = (middle, high) if more == rising else (low, middle)
    return (low + high) / 2 if rising else 2.718281828 ** ((low + high) / 2)


def profiles_of(prompts: list[Prompt], level: float, mean: float) -> list[torch.Tensor]:
    """For every prompt, what each layer and head selects of the other texts by a level of the share, over the mean."""
    found = []
    for prompt in prompts:
        others = [other for other in prompts if other.name.split("/")[0] != prompt.name.split("/")[0]]
        shares = [
            torch.stack(
                [RULES["threshold"](view, level, Where(0, mean)).float().mean((1, 2)) for view in one.views]
            )
            for one in others
        ]
        found.append(torch.stack(shares).mean(0) / mean)
    return found


def judge(model: RecordedModel, prompts: list[Prompt], select: Any) -> Judged:
    """Decode every prompt with a selection: ``select(view, prompt's index, layer)``."""
    judged = Judged()
    for number, prompt in enumerate(prompts):
        shares: list[torch.Tensor] = []

        def chosen(
            view: View, layer: int, number: int = number, shares: list[torch.Tensor] = shares
        ) -> torch.Tensor:
            found = select(view, number, layer)
            shares.append(found.float().mean(-1))
            return found

        judged.add(prompt, *model.decode(prompt, chosen), shares)
    return judged


def signals(judged: Judged) -> dict[str, Any]:
    """How well figures of a step tell whether it is bad; margins are of the step before."""
    bad = torch.cat([one[1:] for one in judged.divergence]) > BAD
    estimated = [one[..., 1:] for one in judged.estimated]
    figures = {
        "mean_estimated_coverage": torch.cat([one.mean((0, 1)) for one in estimated]),
        "least_layers_estimated_coverage": torch.cat([one.mean(1).amin(0) for one in estimated]),
        "least_estimated_coverage": torch.cat([one.flatten(0, 1).amin(0) for one in estimated]),
        "heads_above_0.8": torch.cat([(one > 0.8).float().mean((0, 1)) for one in estimated]),
        "mean_true_coverage": torch.cat([one[..., 1:].mean((0, 1)) for one in judged.covered]),
        "margin_of_the_step_before": torch.cat([one[:-1] for one in judged.margin]),
        "margin_of_the_step": torch.cat([one[1:] for one in judged.margin]),
    }
    return {
        "bad": round(float(bad.float().mean()), 4),
        **{name: separation(one, bad) for name, one in figures.items()},
    }


def coverage_bias(judged: Judged) -> dict[str, list[float]]:
    """True coverage of a layer and head by what is estimated: medians and 5th percentiles of tenths."""
    estimated, true = flat(judged.estimated), flat(judged.covered)
    found = {}
    for low in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98):
        high = {0.9: 0.95, 0.95: 0.98, 0.98: 1.1}.get(low, low + 0.1)
        inside = true[(estimated >= low) & (estimated < high)]
        if len(inside) > 20:
            found[f"{low}"] = [
                round(len(inside) / len(true), 4),
                *(round(float(inside.quantile(q)), 4) for q in (0.05, 0.5)),
            ]
    return found


def main() -> None:
    """Read, calibrate, decode and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint directory")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "budget_rules_smollm2.json", help="JSON file to write"
    )
    parser.add_argument(
        "--ends", type=int, nargs="+", default=[4032, 6080, 8128], help="prompt lengths in tokens"
    )
    parser.add_argument("--steps", type=int, default=32, help="decode steps behind each")
    parser.add_argument("--kinds", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--page-size", type=int, default=32)
    parser.add_argument("--row-tokens", type=int, default=4)
    parser.add_argument("--means", type=float, nargs="+", default=[0.03, 0.06, 0.12], help="fixed shares")
    parser.add_argument(
        "--grid", type=float, nargs="*", default=[0.045, 0.09, 0.18], help="more fixed shares"
    )
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--floors", type=float, nargs="*", default=list(FLOORS))
    parser.add_argument(
        "--floored", type=float, nargs="*", default=[0.03, 0.06], help="fixed shares that floors raise"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    model = RecordedModel(options.model, options.page_size, options.row_tokens)
    prompts: list[Prompt] = []
    sources = list(texts(options.model, options.kinds, max(options.ends), options.steps))
    for name, ids in tqdm(sources, desc="texts", disable=None):
        prompts += model.read(name, ids, options.ends, options.steps)
    metrics: dict[str, Any] = {
        "model": options.model.name,
        "prompts": [prompt.name for prompt in prompts],
        "steps": options.steps,
        "page_size": options.page_size,
        "row_tokens": options.row_tokens,
        "rules": {},
        "floors": {},
        "signals": {},
        "true_coverage_by_estimate": {},
    }

    def keep() -> None:
        metrics["minutes"] = round((time.monotonic() - began) / 60, 1)
        keep_result(options.out, result_document(options.out.stem, metrics))

    nobody: list[Any] = [None] * len(prompts)
    fixed: dict[float, Judged] = {}
    for mean in tqdm(sorted({*options.means, *options.grid}), desc="fixed shares", disable=None):
        fixed[mean] = judge(
            model, prompts, lambda view, _, layer, mean=mean: RULES["fixed"](view, mean, Where(layer, mean))
        )
        metrics["rules"].setdefault("fixed", {})[f"{mean:g}"] = fixed[mean].metrics()
        metrics["signals"][f"{mean:g}"] = signals(fixed[mean])
        metrics["true_coverage_by_estimate"][f"{mean:g}"] = coverage_bias(fixed[mean])
        keep()
    measured = list(fixed.values())
    for mean, rule in tqdm(list(itertools.product(options.means, options.rules)), desc="rules", disable=None):
        if rule == "fixed":
            continue
        true_mean = float(flat(fixed[mean].selected).mean())
        profiles = nobody
        if rule == "profile":
            level = parameter_of("threshold", prompts, true_mean, nobody)
            profiles = profiles_of(prompts, level, true_mean)
        parameter = parameter_of(rule, prompts, true_mean, profiles)

        def select(view: View, number: int, layer: int) -> torch.Tensor:
            return RULES[rule](view, parameter, Where(layer, true_mean, profiles[number]))  # noqa: B023

        judged = judge(model, prompts, select)
        found = {"parameter": round(parameter, 6), **judged.metrics(), **judged.against(measured)}
        metrics["rules"].setdefault(rule, {})[f"{mean:g}"] = found
        print(f"{time.monotonic() - began:6.0f} s  {mean:.1%} {rule} {found}", flush=True)
        keep()
    for mean, floor in tqdm(
        list(itertools.product(options.floored, options.floors)), desc="floors", disable=None
    ):
        judged = judge(model, prompts, lambda view, *_, mean=mean, floor=floor: floored(view, mean, floor))
        grown = flat(judged.selected) > flat(fixed[mean].selected) + 1e-6
        found = {"grown": round(float(grown.float().mean()), 4), **judged.metrics(), **signals(judged)}
        metrics["floors"].setdefault(f"{mean:g}", {})[f"{floor:g}"] = found
        print(f"{time.monotonic() - began:6.0f} s  {mean:.1%} floor {floor} {found}", flush=True)
        keep()
    keep()
    print(options.out)


if __name__ == "__main__":
    main()
