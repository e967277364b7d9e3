#!/usr/bin/env python3
"""What offering frames to runners-up does to misses: SmolLM2's selections, and those of the process fitted to them.

    PYTHONPATH=scripts python -m studies.runners_up [--traces FOLDER]

Caches of several sizes evict the least important page, as the default policy does. Without runners-up only pages that
were selected enter; with them the best pages that a step left out may as well. Writes
``docs/benchmarks/results/runners_up.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.measurement import MODEL, RESULTS, write_result
from locality.fit import process_scores
from locality.passages import NOVELS_FOLDER
from locality.process import Locality
from locality.replay import policy_worths, residents
from locality.statistics import WARM_UP_STEPS, Booleans, retrieved_pages
from locality.trace import replay
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.reference_engine import RUNNERS_UP
from studies.fit_locality import CHECK_SEEDS, LONG_CONTEXT, SINK_PAGES, WINDOW_PAGES, traces

PAGE_SIZE = 32
BUDGETS = {"model": (0.1, 0.2), "process": (0.04, 0.08)}
FRAMES = (1.25, 2.0, 2.5)
PROCESS_STEPS, PROCESS_LAYERS, PROCESS_HEADS = 112, 6, 8


def left_out(scores: torch.Tensor, num_pages: torch.Tensor, retrieved: Booleans) -> Booleans:
    """The best `RUNNERS_UP` pages that each step did not select, ``[C, steps, M]``."""
    position = torch.arange(scores.shape[2])
    forced = (position < SINK_PAGES) | (position >= num_pages[:, None] - WINDOW_PAGES)
    taken = torch.from_numpy(retrieved).transpose(0, 1) | forced[:, None]
    best = scores.masked_fill(taken, -torch.inf).topk(RUNNERS_UP, dim=2)
    found = torch.zeros(scores.shape, dtype=torch.bool)
    found.scatter_(2, best.indices, best.values > -torch.inf)
    return found.transpose(0, 1).numpy()


def misses(
    scores: torch.Tensor, num_pages: torch.Tensor, budget: float
) -> Iterator[tuple[str, dict[str, float]]]:
    """Share of the retrieved pages that is missed, and pages loaded before selection, by relative cache size."""
    alpha = RheoConfig().importance_alpha
    retrieved = retrieved_pages(scores, num_pages, budget, SINK_PAGES, WINDOW_PAGES)
    nobody = np.zeros_like(retrieved)
    runners_up = left_out(scores, num_pages, retrieved)
    counted = slice(WARM_UP_STEPS, None)
    for frames in FRAMES:
        found = {}
        for name, ahead in (("without", nobody), ("with", runners_up)):
            worths = policy_worths("importance", retrieved, scores, num_pages, alpha)
            held = residents(retrieved, frames, worths, ahead)
            missed = (retrieved & ~held)[:, counted].sum() / retrieved[:, counted].sum()
            entered = held[:, 1:] & ~held[:, :-1] & ~retrieved[:, :-1]
            found[f"missed_{name}"] = round(float(missed), 4)
            found[f"loaded_ahead_{name}"] = round(float(entered[:, counted].sum(2).mean()), 2)
        yield str(frames), found


def main() -> None:
    """Replay and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint directory")
    parser.add_argument("--novels", type=Path, default=NOVELS_FOLDER, help="folder of the novels")
    parser.add_argument("--traces", type=Path, help="folder to keep traces in and take them from")
    options = parser.parse_args()
    fitted = json.loads((RESULTS / "locality_smollm2.json").read_text())["metrics"]
    locality = Locality.from_json(fitted[f"page{PAGE_SIZE}"]["parameters"])
    pages = torch.full((PROCESS_STEPS,), LONG_CONTEXT // PAGE_SIZE, dtype=torch.int32)
    seeds = torch.tensor(CHECK_SEEDS[:1])
    found = traces(options.model, options.novels, options.traces)
    sources = {
        "model": replay(found["text"], PAGE_SIZE),
        "process": (process_scores(pages, seeds, PROCESS_LAYERS, PROCESS_HEADS, locality), pages),
    }
    metrics: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct, fp32, 4096 tokens",
        "process": f"fitted to it, {LONG_CONTEXT} tokens",
        "page_size": PAGE_SIZE,
        "runners_up": RUNNERS_UP,
    }
    for name, (scores, num_pages) in sources.items():
        for budget in BUDGETS[name]:
            metrics[f"{name}_{budget}"] = dict(misses(scores, num_pages, budget))
            print(name, budget, metrics[f"{name}_{budget}"], flush=True)
    print(write_result("runners_up", metrics))


if __name__ == "__main__":
    main()
