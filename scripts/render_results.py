#!/usr/bin/env python3
"""Draw the tables and plots of docs/results.md from the result files.

python scripts/render_results.py
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import speed_sections
from measurement import REPOSITORY, RESULTS

DOCS = REPOSITORY / "docs"
PLOTS = DOCS / "benchmarks"


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


def exactness(result: dict[str, Any]) -> str:
    """Section on budget 1.0."""
    metrics = result["metrics"]
    rows = [
        [
            name.replace("_", " "),
            case["greedy_mismatches"],
            f"{case['max_logprob_difference']:.1e}",
            case.get("cached_tokens", ""),
        ]
        for name, case in metrics["cases"].items()
    ]
    return "\n\n".join(
        [
            "## Budget 1.0 equals dense attention",
            f"SmolLM2-135M-Instruct in fp32, {metrics['prompts']} prompts of {min(metrics['prompt_tokens'])} to "
            f"{max(metrics['prompt_tokens'])} tokens sent at once, {metrics['new_tokens']} greedy tokens each, "
            "compared with SGLang's `torch_native` backend. The frame pool holds "
            f"{metrics['frame_pool_tokens']} tokens, 10 % of the KV. *cached* sends the same prompts again, so that "
            "their prefixes come from the radix cache.",
            table(
                ["server", "differing tokens", "largest log-probability difference", "cached tokens"], rows
            ),
            f"Relative error of a decode step's attention output against float64: {metrics['max_rel_err_fp32']:.1e}.",
            provenance(result),
        ]
    )


def fuzzed_prefill(result: dict[str, Any]) -> str:
    """Section on random chunks, prefix hits and aborts."""
    metrics = result["metrics"]
    columns = {
        "answers_that_differ": "answers that differ",
        "of_them_ties": "of them ties",
        "aborted_answers": "aborted answers",
        "cached_tokens": "cached tokens",
        "pages_left": "pages left",
        "frames_left": "frames left",
    }
    lengths = metrics["prompt_tokens"]
    return "\n\n".join(
        [
            "## Prefill, fuzzed",
            f"{metrics['model']}: {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens that share "
            f"beginnings, some aborted midway; budget 1.0, {metrics['rheo']['frame_pool_tokens']} tokens of KV in "
            f"frames, compared with SGLang's `{metrics['dense']}` backend without a prefix cache. *Left* is what is "
            "in use once the cache is flushed.",
            table(
                ["server", *columns.values()],
                [[name, *(case[key] for key in columns)] for name, case in metrics["cases"].items()],
            ),
            provenance(result),
        ]
    )


def behaviour(result: dict[str, Any]) -> str:
    """Section on the 20 % budget."""
    metrics = result["metrics"]
    reported = metrics["reported"]
    dense, rheo = metrics["needle_dense_cases"], metrics["needle_rheo_cases"]
    lengths = list(dense["by_length"])
    needles = table(
        ["backend", *(f"{length} tokens" for length in lengths), f"of {metrics['needle_total']}"],
        [
            ["dense (torch_native)", *dense["by_length"].values(), dense["right"]],
            ["rheo, budget 20 %", *rheo["by_length"].values(), rheo["right"]],
        ],
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
    plot_layers(metrics)
    return "\n\n".join(
        [
            "## A budget of 20 % on real weights",
            "SmolLM2-135M-Instruct in fp32, one access code hidden in the language reference of Python; mean grouping, "
            f"frames for {metrics['frames_per_selected']} times the selected pages, no dense threshold.",
            needles,
            "Four prompts of 4096 tokens of real text, 64 decode steps each, beside the earlier offline replay of the "
            "same model:",
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


def plot_layers(metrics: dict[str, Any]) -> None:
    """Hit rate of every layer for both page sizes."""
    figure, axes = plt.subplots(figsize=(7, 3))
    for page_size in (16, 32):
        rates = metrics[f"recorder_page{page_size}"]["overall"]["per_layer"]
        axes.plot(np.arange(len(rates)), rates, marker="o", markersize=3, label=f"page size {page_size}")
    axes.set(xlabel="layer", ylabel="hit rate", title="SmolLM2, budget 20 %, frames for 1.25x the selection")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOTS / "hit_rate_by_layer.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Write docs/results.md and its plots."""
    sections = ["# Results\n\nGenerated by `scripts/render_results.py` from `docs/benchmarks/results/`."]
    for name, render in (
        ("exactness_cpu", exactness),
        ("fuzz_prefill_cpu", fuzzed_prefill),
        ("fuzz_prefill_gpu", fuzzed_prefill),
        ("behaviour_smollm2", behaviour),
    ):
        result = load(name)
        if result is not None:
            sections.append(render(result))
    speed = load("tpot_gpu")
    if speed is not None:
        sections.append(speed_sections.tpot(speed, table, provenance))
    misses = load("split_gpu")
    if misses is not None:
        sections.append(speed_sections.miss_path(misses, table, provenance, PLOTS))
    (DOCS / "results.md").write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
