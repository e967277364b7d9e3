#!/usr/bin/env python3
"""Draw the tables of docs/reference-model.md and of the model card from the result files.

PYTHONPATH=scripts python -m rendering.reference_model
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from common.measurement import REPOSITORY, RESULTS
from rendering.marked_page import fill
from rendering.results import DOCS, provenance, table
from rheo_sglang.evaluation.tasks import TASKS

PAGE = DOCS / "reference-model.md"
CARD = REPOSITORY / "models" / "rheo-reference" / "README.md"
LENGTHS = ("1k", "4k", "8k", "16k", "32k", "64k")
SERVED = {"dense": "fa3", "rheo5": "rheo, 5 %", "rheo10": "rheo, 10 %", "rheo20": "rheo, 20 %"}
MODELS = {"smollm2": "SmolLM2", "reference": "rheo-reference"}
MASS = {
    "oracle": "oracle",
    "bounds_mean": "bounds, mean",
    "bounds_max": "bounds, max",
    "mean_key": "mean key",
    "last_pages": "last pages",
}
PAGE_SIZES = (16, 32)
HITS = {"lru": "LRU", "importance": "importance", "belady": "Belady"}


def cases(measured: dict[str, Any]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Page size, budget and figures of one text's measurement."""
    for page_size in PAGE_SIZES:
        for budget, case in measured[f"page{page_size}"].items():
            yield page_size, budget, case


def rows(metrics: dict[str, Any]) -> Iterator[list[Any]]:
    """One row for each context, text, page size and budget, the models side by side."""
    contexts = sorted({int(context) for found in metrics["models"].values() for context in found})
    for context in contexts:
        for model, found in metrics["models"].items():
            for group, measured in found.get(str(context), {}).items():
                for page_size, budget, case in cases(measured):
                    yield [
                        f"{context // 1024}K",
                        f"{MODELS[model]}, {group}",
                        page_size,
                        f"{float(budget):.0%}",
                        *(f"{case['mass_covered'][name]:.3f}" for name in MASS),
                        *(f"{case['hit_rate'][name]:.3f}" for name in HITS),
                    ]


def accuracy(metrics: dict[str, Any]) -> str:
    """Share of turns that the model answers exactly, by task and length."""
    rows = [[task, *(f"{metrics[f'{task}_{length}']:.2f}" for length in LENGTHS)] for task in TASKS]
    return table(["task", *map(str.upper, LENGTHS)], rows)


def budgets(metrics: dict[str, Any]) -> str:
    """Share of items and of whole answers that servers give right, by task, server and length."""
    rows = []
    for task in TASKS:
        for engine, name in SERVED.items():
            row = [task, name]
            for length in LENGTHS:
                items, whole = (metrics[f"{engine}_{task}_{length}{kind}"] for kind in ("", "_exact"))
                row.append(f"{items:.3f}" if items == whole else f"{items:.3f} ({whole:.3f})")
            rows.append(row)
    return table(["task", "server", *map(str.upper, LENGTHS)], rows)


def main() -> None:
    """Replace what stands between the markers of the pages."""
    model, structure = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("reference_model", "reference_structure")
    )
    header = ["context", "model, text", "page", "budget", *MASS.values(), *HITS.values()]
    fill(CARD, "accuracy", accuracy(model["metrics"]))
    fill(PAGE, "budgets", f"{budgets(model['metrics'])}\n\n{provenance(model)}")
    fill(
        PAGE,
        "reference_structure",
        f"{table(header, list(rows(structure['metrics'])))}\n\n{provenance(structure)}",
    )


if __name__ == "__main__":
    main()
