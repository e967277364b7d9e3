#!/usr/bin/env python3
"""Draw the tables and plots of docs/results.md from the result files.

PYTHONPATH=scripts python -m rendering.results
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from common.measurement import REPOSITORY, RESULTS
from rendering.admission_section import admission
from rendering.agents_section import agents
from rendering.cpu_sections import cpu_attention, cpu_server
from rendering.exactness_sections import (
    exactness,
    exactness_gpu,
    fuzzed_prefill,
    tensor_parallel,
    trees_compared,
)
from rendering.prefill_sections import prefill
from rendering.serving_section import serving, serving_variants
from rendering.shared_prefixes_section import shared_prefixes
from rendering.soak_section import soak
from rendering.speed_sections import miss_path, several_gpus, tpot, tpot_default, tpot_select4
from rendering.storage_section import storage

DOCS = REPOSITORY / "docs"
PLOTS = DOCS / "benchmarks"
plt.rcParams["svg.hashsalt"] = "the same picture has the same bytes"


def load(name: str) -> dict[str, Any] | None:
    """One result file, or None if it has not been measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; numbers are right-aligned."""
    right = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    lines = [header, ["---:" if numeric else "---" for numeric in right], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def provenance(result: dict[str, Any]) -> str:
    """Where a result comes from, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{result['command']}` on {result['machine']}; {versions}; {result['date']}."


def behaviour(result: dict[str, Any], table: Any, provenance: Any, plots: Path) -> str:
    """Section on the 20 % budget."""
    metrics = result["metrics"]
    reported = metrics["reported"]
    rows = [("dense (torch_native)", "dense")]
    for name, settings in metrics["selections"].items():
        tail = " and tail" if settings.get("tail") else ""
        rows += [
            (f"rheo, {settings['summary']}{tail}, page {size}", f"{name}_page{size}") for size in (16, 32)
        ]
    cases = [(label, metrics[f"needle_{name}_cases"]) for label, name in rows]
    lengths = list(cases[0][1]["by_length"])
    needles = table(
        ["backend", *(f"{length} tokens" for length in lengths), f"of {metrics['needle_total']}"],
        [[label, *case["by_length"].values(), case["right"]] for label, case in cases],
    )
    low16, high16 = reported["mass_covered_20pct_page16"]
    low32, high32 = reported["mass_covered_20pct_page32"]
    compared = table(
        ["in the server, per decode step", "measured", "offline replay"],
        [
            [
                "attention mass covered, page 16",
                f"{metrics['mass_covered_20pct_page16']:.3f}",
                f"{low16} to {high16}",
            ],
            [
                "attention mass covered, page 32",
                f"{metrics['mass_covered_20pct_page32']:.3f}",
                f"{low32} to {high32}",
            ],
            [
                "hit rate, page 16, frames for 1.25x the selection",
                f"{metrics['hit_rate_page16']:.3f}",
                f"LRU {reported['hit_rate_page16']['lru']}, Belady {reported['hit_rate_page16']['belady']}",
            ],
            [
                "hit rate, page 32, frames for 1.25x the selection",
                f"{metrics['hit_rate_page32']:.3f}",
                "0.90 to 0.91",
            ],
        ],
    )
    requests = table(
        ["request", "iterations", "samples", "hit rate", "mass covered"],
        [
            [
                number,
                entry["iterations"],
                entry["samples"],
                f"{entry['hit_rate']:.4f}",
                f"{entry['mass_covered']:.4f}",
            ]
            for number, entry in enumerate(metrics["recorder_page16"]["requests"][:4], 1)
        ],
    )
    talk = metrics["conversation"]
    plot_layers(metrics, plots / "hit_rate_by_layer.svg")
    return "\n\n".join(
        [
            "## A budget of 20 % on real weights",
            "SmolLM2-135M-Instruct in fp32, one access code hidden in the language reference of Python; mean grouping, "
            f"frames for {metrics['frames_per_selected']} times the selected pages, no dense threshold.",
            needles,
            "Four prompts of 4096 tokens of real text, 64 decode steps each that follow the server's own text "
            f"({metrics['selections']['rheo']['summary']}), and the earlier offline replay of the same model. The mass "
            "is that of the selected pages alone, without the tail:",
            compared,
            "![Hit rate by layer](benchmarks/hit_rate_by_layer.svg)",
            "Page 16, request by request:",
            requests,
            f"A conversation of {talk['turns']} turns grows to {talk['tokens']} tokens over a frame pool of "
            f"{talk['counters_full']['frames_total'] // (30 * 3) * 16} tokens. Prompt tokens that came from the radix "
            f"cache, turn by turn: {', '.join(map(str, talk['cached_tokens']))}. After the flush "
            f"{metrics['leaked_pages']} pages and {metrics['leaked_frames']} frames are still in use.",
            provenance(result),
        ]
    )


def plot_layers(metrics: dict[str, Any], path: Path) -> None:
    """Hit rate of every layer for both page sizes."""
    figure, axes = plt.subplots(figsize=(7, 3))
    for page_size in (16, 32):
        rates = metrics[f"recorder_page{page_size}"]["overall"]["per_layer"]
        axes.plot(np.arange(len(rates)), rates, marker="o", markersize=3, label=f"page size {page_size}")
    axes.set(xlabel="layer", ylabel="hit rate", title="SmolLM2, budget 20 %, frames for 1.25x the selection")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


HEAD = """# Results

Generated by `scripts/rendering/results.py` from `docs/benchmarks/results/`; words are those of the
[glossary](architecture.md#words). Below each section is the command that was run at the time. Scripts have moved since:
`bench_*` to `scripts/benchmarks`, `measure_*` to `scripts/studies`, `check_*`, `fuzz_*` and `measure_exactness` to
`scripts/exactness`."""


def page(plots: Path = PLOTS) -> str:
    """All of docs/results.md; its plots are written to ``plots``."""
    sections = [HEAD]
    for name, render, *where in (
        ("exactness_cpu", exactness),
        ("exactness_gpu", exactness_gpu),
        ("tensor_parallel_gpu", tensor_parallel),
        ("fuzz_prefill_cpu", fuzzed_prefill),
        ("fuzz_prefill_gpu", fuzzed_prefill),
        ("behaviour_smollm2", behaviour, plots),
        ("house_gpu", trees_compared),
        ("house_present_gpu", trees_compared),
        ("tpot_gpu", tpot),
        ("tpot_select4_gpu", tpot_select4),
        ("tpot_default_gpu", tpot_default),
        ("tpot_tp2_gpu", several_gpus),
        ("shared_prefixes_gpu", shared_prefixes),
        ("serving_gpu", serving),
        ("serving_variants_gpu", serving_variants),
        ("agents_gpu", agents),
        ("agents_cpu", agents),
        ("split_gpu", miss_path, plots),
        ("cpu_attention", cpu_attention, plots),
        ("cpu_server", cpu_server),
        ("prefill_gpu", prefill, plots),
        ("storage_cpu", storage),
        ("admission", admission),
        ("admission_cpu", admission),
        ("soak_gpu", soak),
        ("soak_cpu", soak),
    ):
        result = load(name)
        if result is not None:
            sections.append(render(result, table, provenance, *where))
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    (DOCS / "results.md").write_text(page())
