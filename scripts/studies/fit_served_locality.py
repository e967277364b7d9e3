#!/usr/bin/env python3
"""Fit the benchmarks' synthetic page scores to the selections of a model that a server traced.

    PYTHONPATH=scripts python -m studies.fit_served_locality --folder traces --name locality_coder

Takes the long answers among the traces that `studies.trace_workloads` left in the folder: those of ``--steps`` decode
steps and more. At each page size the process is fitted to the selections of a budget of 4 %, the default of long
contexts, in all of these answers; then answers and process are compared at several budgets, the process under a seed
that the fit has not seen, and so is the process that was fitted to SmolLM2. The scores are the server's own: what its
summary estimates of each page's attention.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.measurement import RESULTS, write_result
from locality.fit import FIT_SEED, HEADS, fit, process_scores, targets
from locality.process import Locality
from locality.replay import SINK_PAGES, WINDOW_PAGES, describe_budgets
from locality.served import served_scores
from locality.statistics import WARM_UP_STEPS, retrieved_pages
from rheo_sglang.traces import Trace
from rheo_sglang.traces.reader import MANIFEST

STEPS = 192
BUDGETS, FITTED_BUDGET = (0.02, 0.04, 0.1, 0.2), 0.04
FITTED_LAYERS = 12
CHECK_SEED = 1
EARLIER = "locality_smollm2"
"""The fit to a small model at 4K tokens, for comparison."""
assert CHECK_SEED != FIT_SEED


def compare(traces: list[Trace], steps: int) -> dict[str, Any]:
    """Fit at one page size, and the statistics of every answer and of the process."""
    goals, real, lengths = [], {}, []
    for trace in traces:
        for request, scores, num_pages in served_scores(trace, steps):
            retrieved = retrieved_pages(scores, num_pages, FITTED_BUDGET, SINK_PAGES, WINDOW_PAGES)
            goals.append(targets(retrieved))
            real[f"{trace.folder.name} {request}"] = describe_budgets(scores, num_pages, BUDGETS)
            lengths.append(num_pages)
    if not goals:
        return {}
    pages = max(lengths, key=lambda one: int(one.max()))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    locality = fit(
        np.mean(goals, 0), pages.to(device), FITTED_BUDGET, SINK_PAGES, WINDOW_PAGES, FITTED_LAYERS
    )
    earlier = json.loads((RESULTS / f"{EARLIER}.json").read_text())["metrics"]
    before = Locality.from_json(earlier[f"page{traces[0].page_size}"]["parameters"])
    manifest = traces[0].manifest
    return {
        "model": manifest["model"],
        "summary": manifest["summary"],
        "parameters": locality.to_json(),
        "pages": int(pages.max()),
        "real": real,
        "fitted": _described(locality, pages),
        EARLIER: _described(before, pages),
    }


def _described(locality: Locality, pages: torch.Tensor) -> dict[str, Any]:
    scores = process_scores(pages, torch.tensor([CHECK_SEED]), FITTED_LAYERS, HEADS, locality)
    return describe_budgets(scores, pages, BUDGETS)


def main() -> None:
    """Fit at every page size that was traced, and write the result after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the traces are")
    parser.add_argument("--name", required=True, help="of the result")
    parser.add_argument("--steps", type=int, default=STEPS, help="decode steps of an answer")
    options = parser.parse_args()
    by_size: defaultdict[int, list[Trace]] = defaultdict(list)
    for manifest in sorted(options.folder.glob(f"*/{MANIFEST}")):
        trace = Trace(manifest.parent)
        by_size[trace.page_size].append(trace)
    metrics: dict[str, Any] = {
        "steps": options.steps,
        "sink_pages": SINK_PAGES,
        "window_pages": WINDOW_PAGES,
        "fitted_budget": FITTED_BUDGET,
        "warm_up_steps": WARM_UP_STEPS,
        "process_layers": FITTED_LAYERS,
        "process_kv_heads": HEADS,
    }
    fitted = False
    for size, traces in sorted(by_size.items(), reverse=True):
        if case := compare(traces, options.steps):
            metrics[f"page{size}"], fitted = case, True
            print(write_result(options.name, metrics), f"page size {size}", flush=True)
    if not fitted:
        raise SystemExit(f"--folder {options.folder}: no trace there has an answer of {options.steps} steps")


if __name__ == "__main__":
    main()
