#!/usr/bin/env python3
"""Attention structure of the reference model and of SmolLM2: covered mass by selector, hit rates by policy.

    PYTHONPATH=scripts python -m studies.reference_structure
    PYTHONPATH=scripts python -m studies.reference_structure --models reference --contexts 8192 --out reference.json

SmolLM2 reads three novels and Python's language reference, the reference model a novel that it has not seen and
questions about facts hidden there; both decode along the text. A context of so many tokens ends with the last decode
step, and models that do not reach a context are left out there. Sink and window pages are always selected and count as
covered, not as looked up. Writes ``docs/benchmarks/results/reference_structure.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.measurement import MODEL, REPOSITORY, RESULTS, result_document
from locality.mass import covered, page_masses, with_forced
from locality.passages import NOVELS_FOLDER, Passages, passages, reference_passages
from locality.replay import hit_rate, policy_worths, residents
from locality.statistics import (
    WARM_UP_STEPS,
    retrieved_pages,
)
from locality.trace import Trace, page_scores, record
from rheo_sglang.config import RheoConfig

CONFIG = RheoConfig()
MODELS = {"smollm2": MODEL, "reference": REPOSITORY / "models" / "rheo-reference"}
LARGEST_CONTEXTS = {"smollm2": 8192, "reference": 131_072}
PAGE_SIZES = (16, 32)
BUDGETS = (0.1, 0.2, 0.3)
SELECTORS = {"bounds_mean": ("bound", "mean"), "bounds_max": ("bound", "max"), "mean_key": ("mean", "mean")}
"""Summary and grouping of each selector; the first is the default, whose selections the hit rates are of."""
FRAMES = 1.25


def joined(found: list[torch.Tensor]) -> torch.Tensor:
    """Scores of several traces, ``[steps, L, H, M]`` each, as those of one with more caches, ``[steps, C, M]``."""
    return torch.cat([one.flatten(1, 2) for one in found], 1)


def compare(traces: list[Trace], page_size: int) -> dict[str, Any]:
    """Covered mass and hit rates of one page size at every budget."""
    counted = slice(WARM_UP_STEPS, None)
    masses = joined([page_masses(trace, page_size) for trace in traces])
    drawn = masses.transpose(0, 1).numpy()[:, counted]
    scores = {"oracle": masses}
    for name, (kind, grouping) in SELECTORS.items():
        scored = [page_scores(trace, page_size, kind, grouping) for trace in traces]
        scores[name] = joined([one for one, _ in scored])
    num_pages = scored[0][1]
    ages = torch.arange(masses.shape[2], dtype=torch.float32).expand_as(masses)
    scores["last_pages"] = ages.masked_fill(masses.isneginf(), -torch.inf)

    default = next(iter(SELECTORS))
    result: dict[str, Any] = {}
    for budget in BUDGETS:
        retrieved = {
            name: retrieved_pages(one, num_pages, budget, CONFIG.sink_pages, CONFIG.window_pages)
            for name, one in scores.items()
        }
        mass = {
            name: covered(
                drawn, with_forced(one, num_pages, CONFIG.sink_pages, CONFIG.window_pages)[:, counted]
            )
            for name, one in retrieved.items()
        }
        looked_up = retrieved[default]
        worth = policy_worths("importance", looked_up, scores[default], num_pages, CONFIG.importance_alpha)
        kept = residents(looked_up, FRAMES, worth)
        hits = {
            "lru": hit_rate(looked_up, FRAMES, "lru"),
            "importance": float((looked_up & kept)[:, counted].sum() / looked_up[:, counted].sum()),
            "belady": hit_rate(looked_up, FRAMES, "belady"),
        }
        result[str(budget)] = {
            "mass_covered": {name: round(value, 4) for name, value in mass.items()},
            "hit_rate": {name: round(value, 4) for name, value in hits.items()},
        }
    return result


def measure(model: Path, texts: Passages, context: int, steps: int) -> dict[str, Any]:
    """All page sizes over some passages of ``context + 1`` tokens."""
    prompt = context - steps
    tokens = list(texts.values())
    traces = record(model, [one[:prompt] for one in tokens], steps, [one[prompt:] for one in tokens])
    return {
        "passages": list(texts),
        **{f"page{size}": compare(traces, size) for size in tqdm(PAGE_SIZES, leave=False, disable=None)},
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--contexts", default="8192,16384,32768", help="tokens, comma-separated (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=64, help="decode steps that count (default: %(default)s)"
    )
    parser.add_argument(
        "--novels",
        type=Path,
        default=NOVELS_FOLDER,
        help="folder of the novels, filled when it holds none",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "reference_structure.json", help="JSON file")
    options = parser.parse_args()
    options.models = options.models.split(",")
    options.contexts = [int(context) for context in options.contexts.split(",")]
    if unknown := [name for name in options.models if name not in MODELS]:
        parser.error(f"--models: {unknown[0]} is not one of {', '.join(MODELS)}")
    if options.steps < 1:
        parser.error(f"--steps {options.steps} is too few; allowed: 1 or more")
    least = 2 * (WARM_UP_STEPS + options.steps)
    if min(options.contexts) < least:
        parser.error(f"--contexts: {min(options.contexts)} is too short; allowed: {least} or more")
    return options


def main() -> None:
    """Record, compare and write the result, anew after every context."""
    options = parse_arguments()
    steps = WARM_UP_STEPS + options.steps
    metrics: dict[str, Any] = {
        "steps": options.steps,
        "warm_up_steps": WARM_UP_STEPS,
        "sink_pages": CONFIG.sink_pages,
        "window_pages": CONFIG.window_pages,
        "frames_per_retrieved_page": FRAMES,
        "models": {name: {} for name in options.models},
    }
    for context in options.contexts:
        for name in options.models:
            if context > LARGEST_CONTEXTS[name]:
                continue
            path = MODELS[name]
            if name == "smollm2":
                groups = {"text": passages(path, options.novels, context + 1)}
            else:
                groups = reference_passages(path, options.novels, context + 1)
            metrics["models"][name][str(context)] = {
                group: measure(path, texts, context, steps) for group, texts in groups.items()
            }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result_document(options.out.stem, metrics), indent=1) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
