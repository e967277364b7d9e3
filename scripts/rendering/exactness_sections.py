"""Sections of docs/results.md on exactness: budget 1.0 against dense attention, and prefill fuzzed."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any


def case_rows(metrics: dict[str, Any], *cells: Callable[[dict[str, Any]], Any]) -> list[list[Any]]:
    """One row per case of a result: its name, and what each of ``cells`` makes of its figures."""
    return [
        [name.replace("_", " "), *(cell(case) for cell in cells)] for name, case in metrics["cases"].items()
    ]


def exactness(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on budget 1.0."""
    metrics = result["metrics"]
    rows = case_rows(
        metrics,
        itemgetter("greedy_mismatches"),
        lambda case: f"{case['max_logprob_difference']:.1e}",
        lambda case: case.get("cached_tokens", ""),
    )
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


def exactness_gpu(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on budget 1.0 in bfloat16."""
    metrics = result["metrics"]
    rows = case_rows(
        metrics,
        itemgetter("answers_that_differ"),
        itemgetter("of_them_ties"),
        lambda case: ", ".join(f"{one['logprob_gap']:.3g}" for one in case["first_differences"]),
    )
    return "\n\n".join(
        [
            "## Budget 1.0 in bfloat16 on a GPU",
            f"{metrics['model']}, {len(metrics['prompt_tokens'])} prompts of {min(metrics['prompt_tokens'])} to "
            f"{max(metrics['prompt_tokens'])} tokens sent at once, {metrics['new_tokens']} greedy tokens each, "
            "compared with SGLang's `fa3` backend. Where an answer first differs, the two tokens are a tie if fa3 "
            f"itself puts their log-probabilities at most {metrics['tie_logprob']} apart: two steps of a logit.",
            table(["server", "answers that differ", "of them ties", "gaps at the first difference"], rows),
            provenance(result),
        ]
    )


def fuzzed_prefill(result: dict[str, Any], table: Any, provenance: Any) -> str:
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
            f"## Prefill, fuzzed, on {'a GPU' if 'NVIDIA' in result['machine'] else 'CPUs'}",
            f"{metrics['model']}: {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens that share "
            f"beginnings, some aborted midway; budget 1.0, {metrics['rheo']['frame_pool_tokens']} tokens of KV in "
            f"frames, compared with SGLang's `{metrics['dense']}` backend without a prefix cache. *Left* is what is "
            "in use once the cache is flushed.",
            table(["server", *columns.values()], case_rows(metrics, *map(itemgetter, columns))),
            provenance(result),
        ]
    )


def tensor_parallel(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on greedy tokens of two GPUs against one."""
    metrics = result["metrics"]
    rows = [
        [name, len(metrics["prompt_tokens"]), case["answers_that_differ"], case["of_them_ties"]]
        for name, case in metrics["cases"].items()
    ]
    lengths = metrics["prompt_tokens"]
    return "\n\n".join(
        [
            "## Two GPUs against one",
            f"{metrics['model']}, greedy, prompts of {min(lengths)} to {max(lengths)} tokens at once, "
            f"{metrics['new_tokens']} tokens each. An all-reduce sums in another order than one GPU does; a tie is a "
            f"first difference between tokens whose log-probabilities are within {metrics['tie_logprob']}.",
            table(["selection", "answers", "that differ", "of them ties"], rows),
            provenance(result),
        ]
    )


def trees_compared(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on two trees of the repository, measured in turns."""
    metrics = result["metrics"]
    tpot = dict(metrics["tpot_ratio_after_before"])
    median = tpot.pop("median", None)
    kernels = {
        key.removesuffix("_ratio"): ratio
        for key, ratio in metrics.items()
        if key.endswith("_ratio") and isinstance(ratio, float)
    }
    middle = sorted(kernels.values())[len(kernels) // 2]
    named = []
    for key, ratio in metrics["kernels_slower_by_2_percent"].items():
        name = key.removesuffix("_ratio")
        named.append(f"`{name}` ({metrics[f'{name}_us_before']:.2f} us, {ratio:.3f} times)")
    slower = f"slower by over 2 %: {', '.join(named) or 'none'}."
    if median is None:
        parts = [
            "## Kernels since",
            "The same tree before, and the present one. Selections have since learned to prefer pages that have a "
            "frame, to stamp what they select, and to take it out of the tail's estimates.",
            f"Of {len(kernels)} kernel timings at batch 4 the median ratio is {middle:.3f}; {slower}",
        ]
        return "\n\n".join([*parts, provenance(result)])
    return "\n\n".join(
        [
            "## One decode engine, before and after",
            "The tree before summaries, budget rules and policies became one file each (e77c25d) and the one after, in "
            "turns on one machine; Qwen3-8B's shape with random weights, one request.",
            table(
                ["time per output token", "after / before"],
                [[key, f"{ratio:.3f}"] for key, ratio in tpot.items()],
            ),
            f"Median {median:.3f}. Of {len(kernels)} kernel timings the median is {middle:.3f}; {slower}",
            provenance(result),
        ]
    )
