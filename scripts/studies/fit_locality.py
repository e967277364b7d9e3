#!/usr/bin/env python3
"""Fit the benchmarks' synthetic page scores to the page selections of a real model.

    PYTHONPATH=scripts python -m studies.fit_locality [--traces FOLDER]

SmolLM2 decodes 128 steps after 4096 tokens of three novels and of Python's language reference, once along the text
itself and once greedily; every step's page scores and selections are replayed at page sizes 16 and 32. The process is
fitted to the selections along the text at a budget of 10 %, then compared with them at 5, 10 and 20 % under seeds that
the fit has not seen. Greedy decoding of so small a model ends in repetition; its statistics are there to compare.
Writes ``docs/benchmarks/results/locality_smollm2.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.measurement import MODEL, write_result
from locality.fit import FIT_SEED, HEADS, LAYERS, fit, process_scores, targets
from locality.passages import NOVELS_FOLDER, TEXTS, passages
from locality.process import Locality
from locality.replay import SINK_PAGES, WINDOW_PAGES, describe_budgets, hit_rate
from locality.statistics import WARM_UP_STEPS, retrieved_pages
from locality.trace import Trace, record, replay

CONTEXT, STEPS = 4096, 128
PAGE_SIZES = (16, 32)
BUDGETS, FITTED_BUDGET = (0.05, 0.1, 0.2), 0.1
CHECK_SEEDS = (1, 2)
LONG_CONTEXT, LONG_HEADS = 131072, 2
assert FIT_SEED not in CHECK_SEEDS


def traces(model: Path, novels: Path, kept: Path | None) -> dict[str, list[Trace]]:
    """The traces along the text and the greedy ones; those found in the folder `kept` are not recorded again."""
    texts = passages(model, novels, CONTEXT + STEPS + 1)
    result: dict[str, list[Trace]] = {"text": [], "greedy": []}
    for kind, found in result.items():
        for name, tokens in texts.items():
            path = kept / f"{kind}-{name}.pt" if kept else None
            if path and path.exists():
                found.append(Trace.load(path))
                continue
            continuation = [tokens[CONTEXT:]] if kind == "text" else None
            found += record(model, [tokens[:CONTEXT]], STEPS, continuation)
            if path:
                found[-1].save(path)
    return result


def hit_rate_by_text(scores: torch.Tensor, num_pages: torch.Tensor) -> dict[str, dict[str, float]]:
    """Hit rate of LRU caches of 1.25 times the retrieved pages, by budget and text."""
    result = {}
    for budget in BUDGETS:
        retrieved = retrieved_pages(scores, num_pages, budget, SINK_PAGES, WINDOW_PAGES)
        parts = np.split(retrieved, len(TEXTS))
        result[str(budget)] = {
            name: round(hit_rate(part, 1.25, "lru"), 4) for name, part in zip(TEXTS, parts, strict=True)
        }
    return result


def compare(found: dict[str, list[Trace]], page_size: int) -> dict[str, Any]:
    """Fit at one page size and the statistics of the model and of the process."""
    greedy_scores, num_pages = replay(found["greedy"], page_size)
    scores, num_pages = replay(found["text"], page_size)
    real = retrieved_pages(scores, num_pages, FITTED_BUDGET, SINK_PAGES, WINDOW_PAGES)
    locality = fit(targets(real), num_pages, FITTED_BUDGET, SINK_PAGES, WINDOW_PAGES)
    seeds = torch.tensor(CHECK_SEEDS)
    fitted = describe_budgets(process_scores(num_pages, seeds, LAYERS, HEADS, locality), num_pages, BUDGETS)
    return {
        "parameters": locality.to_json(),
        "real": describe_budgets(scores, num_pages, BUDGETS),
        "fitted": fitted,
        "real_greedy": describe_budgets(greedy_scores, num_pages, BUDGETS),
        "real_hit_rate_lru_1.25_by_text": hit_rate_by_text(scores, num_pages),
        "real_greedy_hit_rate_lru_1.25_by_text": hit_rate_by_text(greedy_scores, num_pages),
        "fitted_long_context": long_context(page_size, locality),
    }


def long_context(page_size: int, locality: Locality) -> dict[str, Any]:
    """The process at `LONG_CONTEXT` tokens, on two heads of each layer."""
    tokens = torch.arange(LONG_CONTEXT, LONG_CONTEXT + STEPS) + 1
    num_pages = ((tokens + page_size - 1) // page_size).to(torch.int32)
    seeds = torch.tensor(CHECK_SEEDS[:1])
    return describe_budgets(
        process_scores(num_pages, seeds, LAYERS, LONG_HEADS, locality), num_pages, BUDGETS
    )


def main() -> None:
    """Record, fit, compare and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint directory")
    parser.add_argument(
        "--novels",
        type=Path,
        default=NOVELS_FOLDER,
        help="folder of the novels, filled when it holds none",
    )
    parser.add_argument(
        "--traces", type=Path, help="folder to keep traces in and take them from, 106 MB each"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = traces(options.model, options.novels, options.traces)
    metrics: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct, fp32",
        "texts": TEXTS,
        "context_tokens": CONTEXT,
        "steps": STEPS,
        "sink_pages": SINK_PAGES,
        "window_pages": WINDOW_PAGES,
        "fitted_budget": FITTED_BUDGET,
        "warm_up_steps": WARM_UP_STEPS,
        "process_layers": LAYERS,
        "process_kv_heads": HEADS,
        "long_context_tokens": LONG_CONTEXT,
    }
    for page_size in PAGE_SIZES:
        metrics[f"page{page_size}"] = compare(found, page_size)
    print(write_result("locality_smollm2", metrics))


if __name__ == "__main__":
    main()
