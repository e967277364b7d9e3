#!/usr/bin/env python3
"""Draw the table of docs/reference-model.md from docs/benchmarks/results/reference_structure.json.

python scripts/render_reference_structure.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from measurement import RESULTS
from render_results import DOCS, provenance, table

NAME = "reference_structure"
PAGE = DOCS / "reference-model.md"
START, END = "<!-- reference_structure: start -->", "<!-- reference_structure: end -->"
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
    """One row for each context, text, page size and budget, the models beside each other."""
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


def main() -> None:
    """Replace what stands between the markers of the page."""
    result = json.loads((RESULTS / f"{NAME}.json").read_text())
    header = ["context", "model, text", "page", "budget", *MASS.values(), *HITS.values()]
    before, rest = PAGE.read_text().split(START)
    content = f"{table(header, list(rows(result['metrics'])))}\n\n{provenance(result)}"
    PAGE.write_text(f"{before}{START}\n\n{content}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
