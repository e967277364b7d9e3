#!/usr/bin/env python3
"""How well a layer's selected pages and misses can be predicted from the hidden states of the layer before.

    PYTHONPATH=scripts python -m studies.layer_ahead --out docs/benchmarks/results/layer_ahead_smollm2.json
    PYTHONPATH=scripts python -m studies.layer_ahead --model reference --out FILE

SmolLM2 reads 4096 tokens of three novels and of Python's language reference, the reference model 8192 tokens of a
novel that it has not seen and of questions about facts hidden there; both decode along the text. Queries of layer
l + 1 are predicted from the hidden state that enters layer l, and from the one that enters its MLP; what they select
is compared with what the true queries select and miss, in frames for 1.25 times the selected pages.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.measurement import MODEL, REPOSITORY, RESULTS, result_document
from locality.ahead import PREDICTORS, TRUE, cosine, forecast, record_ahead
from locality.passages import NOVELS_FOLDER, Passages, passages, reference_passages
from locality.replay import policy_worths, residents
from locality.statistics import WARM_UP_STEPS, Booleans, retrieved_pages
from locality.trace import replay
from rheo_sglang.config import RheoConfig

CONFIG = RheoConfig()
CONTEXTS = {"smollm2": 4096, "reference": 8192}
NAMES = {
    "smollm2": "SmolLM2-135M-Instruct, fp32",
    "reference": "rheo-reference, 6 layers of Qwen3's architecture, fp32",
}
PAGE_SIZES = (16, 32)
BUDGETS = (0.05, 0.08, 0.1, 0.2)
WIDTHS = (1.0, 1.25)
FRAMES = 1.25


def overlap(retrieved: Booleans, other: Booleans) -> float:
    """Share of the retrieved pages that the other selection holds too, over the counted steps."""
    counted = slice(WARM_UP_STEPS, None)
    return round(float((retrieved & other)[:, counted].sum() / retrieved[:, counted].sum()), 4)


def compare(scores: dict[str, torch.Tensor], num_pages: torch.Tensor, budget: float) -> dict[str, Any]:
    """Selections by predicted queries against those by true ones, at one page size and budget."""

    def select(kind: str, width: float) -> Booleans:
        return retrieved_pages(
            scores[kind], num_pages, width * budget, CONFIG.sink_pages, CONFIG.window_pages
        )

    true = select(TRUE, 1.0)
    before = np.zeros_like(true)
    before[:, 1:] = true[:, :-1]
    counted = slice(WARM_UP_STEPS, None)
    policies = {
        name: residents(
            true, FRAMES, policy_worths(name, true, scores[TRUE], num_pages, CONFIG.importance_alpha)
        )
        for name in ("lru", "importance")
    }
    result: dict[str, Any] = {
        "retrieved_pages": round(float(true[:, counted].sum(2).mean()), 2),
        "selection_recall_last_step": overlap(true, before),
    }
    for kind in PREDICTORS:
        result[kind] = {}
        for width in WIDTHS:
            predicted = select(kind, width)
            result[kind][str(width)] = {"selection_recall": overlap(true, predicted)}
            for policy, resident in policies.items():
                found = forecast(true[:, counted], predicted[:, counted], resident[:, counted])
                result[kind][str(width)][policy] = {key: round(value, 4) for key, value in found.items()}
    return result


def measure(model: Path, texts: Passages, context: int, steps: int) -> dict[str, Any]:
    """All page sizes and budgets over some passages."""
    found = record_ahead(model, texts, context, steps)
    pairs = {kind: zip(found[TRUE], found[kind], strict=True) for kind in PREDICTORS}
    result: dict[str, Any] = {
        "passages": list(texts),
        "query_cosine": {
            kind: round(float(np.mean([cosine(true.queries, one.queries) for true, one in both])), 4)
            for kind, both in pairs.items()
        },
    }
    for page_size in tqdm(PAGE_SIZES, desc="page sizes", leave=False, disable=None):
        replayed = {kind: replay(traces, page_size) for kind, traces in found.items()}
        scores = {kind: one for kind, (one, _) in replayed.items()}
        num_pages = replayed[TRUE][1]
        result[f"page{page_size}"] = {str(budget): compare(scores, num_pages, budget) for budget in BUDGETS}
    return result


def main() -> None:
    """Record, compare and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(CONTEXTS), default="smollm2")
    parser.add_argument(
        "--steps", type=int, default=64, help="decode steps that count (default: %(default)s)"
    )
    parser.add_argument(
        "--novels",
        type=Path,
        default=NOVELS_FOLDER,
        help="folder of the novels, filled when it holds none",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps {options.steps} is too few; allowed: 1 or more")
    torch.set_num_threads(1)
    context, steps = CONTEXTS[options.model], WARM_UP_STEPS + options.steps
    if options.model == "smollm2":
        path = MODEL
        texts = {"text": passages(path, options.novels, context + steps + 1)}
    else:
        path = REPOSITORY / "models" / "rheo-reference"
        texts = reference_passages(path, options.novels, context + steps + 1)
    metrics: dict[str, Any] = {
        "model": NAMES[options.model],
        "context_tokens": context,
        "steps": options.steps,
        "warm_up_steps": WARM_UP_STEPS,
        "sink_pages": CONFIG.sink_pages,
        "window_pages": CONFIG.window_pages,
        "frames_per_retrieved_page": FRAMES,
        **{kind: measure(path, group, context, steps) for kind, group in texts.items()},
    }
    out = options.out or RESULTS / f"layer_ahead_{options.model}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result_document(out.stem, metrics), indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
