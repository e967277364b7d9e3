#!/usr/bin/env python3
"""Which page summary chooses pages best, and estimates the rest best, at equal bytes: by layer and query head.

    PYTHONPATH=scripts python -m studies.selection_quality --out docs/benchmarks/results/selection_quality_smollm2.json
    PYTHONPATH=scripts python -m studies.selection_quality --model .models/qwen2.5-coder-0.5b-instruct --out ...

Real texts of four kinds and an agent's session that ends in a quotation are read once by a dense model, whose
queries, keys and values are recorded; `--recordings` keeps them for another run. Behind a few places of each text, the
steps that decode the text's own tokens are judged with every kind of summary, page size and budget: one sink page, two
window pages and the tokens of the steps before are always attended. No selection changes what later layers see. What a
summary costs is counted in bytes, a mean V in 4 bits among them wherever a tail can be attended.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.measurement import MODEL, RESULTS, keep_result, result_document
from selection.judge import KINDS, judge, page_bytes
from selection.recording import Recording, recordings
from selection.tables import Cell, Found, by_head, by_layer, metrics_of
from selection.texts import TEXTS, texts

BY_LAYER = 0.04
"""Budget at which layers are told apart."""
DEFAULT, DEFAULT_PAGE = "subcentroids4", 32
"""What a server has without any settings: everything is compared to this summary with pages of the same size."""


def judge_text(
    recording: Recording, page_sizes: list[int], kinds: list[str], budgets: list[float], found: Found
) -> None:
    """Judge every layer of a text's prompts and add what was measured, ``[layers, H * G]`` each, to ``found``."""
    layers = recording.keys.shape[0]
    for end in range(len(recording.ends)):
        measured: dict[Cell, list[dict[str, torch.Tensor]]] = {}
        for index in tqdm(
            range(layers), desc=f"{recording.name}/{recording.ends[end]}", disable=None, leave=False
        ):
            layer = recording.layer(index, end)
            for page_size in page_sizes:
                for kind, budget, one in judge(layer, page_size, kinds, budgets):
                    measured.setdefault(Cell(page_size, kind, budget), []).append(one)
        for cell, ones in measured.items():
            found.setdefault(cell, []).append(
                {name: torch.stack([one[name] for one in ones]) for name in ones[0]}
            )


def main() -> None:
    """Record, judge and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint directory")
    parser.add_argument("--out", type=Path, default=RESULTS / "selection_quality_smollm2.json")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--ends", type=int, nargs="+", default=[6080, 8128], help="prompt lengths in tokens")
    parser.add_argument("--steps", type=int, default=32, help="decode steps behind each")
    parser.add_argument("--page-sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.02, 0.04, 0.08])
    parser.add_argument("--recordings", type=Path, help="folder that keeps recordings")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for name, given, needed in (("kinds", options.kinds, DEFAULT), ("budgets", options.budgets, BY_LAYER)):
        if needed not in given:
            parser.error(f"--{name} lacks {needed}, which all are compared at")
    if DEFAULT_PAGE not in options.page_sizes:
        parser.error(f"--page-sizes lacks {DEFAULT_PAGE}")
    for end in options.ends:
        if any(end % page_size for page_size in options.page_sizes):
            parser.error(f"--ends {end} is no multiple of every page size")
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    found: Found = {}
    prompts: list[str] = []
    shape: dict[str, Any] = {}
    sources = texts(options.model, options.texts, max(options.ends), options.steps)
    for recording in recordings(options.model, sources, options.ends, options.steps, options.recordings):
        judge_text(recording, options.page_sizes, options.kinds, options.budgets, found)
        prompts += [f"{recording.name}/{end}" for end in recording.ends]
        layers, _, kv_heads, _, group, dim = recording.queries.shape
        shape = {"layers": layers, "kv_heads": kv_heads, "query_heads": kv_heads * group, "head_dim": dim}
        print(f"{time.monotonic() - began:6.0f} s  {recording.name}", flush=True)
    metrics: dict[str, Any] = {
        "model": options.model.name,
        **shape,
        "prompts": prompts,
        "steps": options.steps,
        "by_layer_budget": BY_LAYER,
        "compared_to": DEFAULT,
        "pages": {},
    }
    for page_size in options.page_sizes:
        kinds = metrics["pages"][str(page_size)] = {}
        for kind in options.kinds:
            size = page_bytes(kind, shape["head_dim"], page_size)
            one: dict[str, Any] = {"bytes": size}
            kinds[kind] = one
            if size is not None:
                one["share_of_kv"] = round(size / (4 * page_size * shape["head_dim"]), 5)
            for budget in options.budgets:
                default = found[Cell(page_size, DEFAULT, budget)]
                one[f"{budget:g}"] = metrics_of(found[Cell(page_size, kind, budget)], default)
            one["layers"] = by_layer(found[Cell(page_size, kind, BY_LAYER)])
    metrics["mass_by_head"] = by_head(found[Cell(DEFAULT_PAGE, DEFAULT, BY_LAYER)], "mass")
    metrics["minutes"] = round((time.monotonic() - began) / 60, 1)
    keep_result(options.out, result_document(options.out.stem, metrics))
    print(options.out)


if __name__ == "__main__":
    main()
