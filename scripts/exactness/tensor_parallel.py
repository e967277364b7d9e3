#!/usr/bin/env python3
"""Greedy tokens on two GPUs against those on one: every page selected, and the default's selection.

    PYTHONPATH=scripts python -m exactness.tensor_parallel --model DIR --out FILE

Eight prompts of real text at once. All-reduces sum in another order than one GPU does, so tokens may differ where two
are as likely; a difference is judged as in `exactness.greedy_gpu`, by the log-probabilities of one rank.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common.measurement import gpu_in_words, keep_result, result_document, text_prompts
from exactness.greedy_gpu import NEW_TOKENS, ROUNDING, SELECT_ALL, TIE, ask, differences, is_tie

LENGTHS = [700, 2000, 4000, 6000, 8000, 11000, 14000, 16000]
RANKS = (1, 2)
FRAME_TOKENS = 16384
CASES: dict[str, dict[str, Any]] = {
    "every page": {**SELECT_ALL, "frame_pool_tokens": FRAME_TOKENS},
    "default": {"frame_pool_tokens": FRAME_TOKENS},
    "4 %": {"frame_pool_tokens": FRAME_TOKENS, "budget_ratio": 0.04, "budget_min_pages": 16},
}


def generate(model: Path, ranks: int) -> list[dict[str, Any]]:
    """Tokens of one engine's answers, and the log-probabilities of the likeliest ones at every position."""
    import sglang

    engine = sglang.Engine(
        model_path=str(model),
        dtype="bfloat16",
        attention_backend="rheo",
        tp_size=ranks,
        max_total_tokens=131072,
        max_running_requests=16,
        context_length=32768,
        cuda_graph_bs_decode=[len(LENGTHS)],
        disable_prefill_cuda_graph=True,
        mem_fraction_static=0.5,
        log_level="warning",
        grammar_backend="none",
        skip_tokenizer_init=True,
    )
    kept = ask(engine, text_prompts(model, LENGTHS))
    engine.shutdown()
    return kept


def run_engine(model: Path, case: str, ranks: int) -> list[dict[str, Any]]:
    """Answers of one engine in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "exactness.tensor_parallel", "--model", str(model)]
        command += ["--ranks", str(ranks), "--answers", file.name]
        start = time.monotonic()
        subprocess.run(command, check=True, env={**os.environ, "RHEO_CONFIG": json.dumps(CASES[case])})
        answers: list[dict[str, Any]] = json.loads(Path(file.name).read_text())
    print(f"{case}, {ranks} GPUs: {time.monotonic() - start:.0f} s", flush=True)
    return answers


def main() -> int:
    """Run every case on one GPU and on two; 1 if an answer differs where one rank sees no tie."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint with at least two KV heads")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--ranks", type=int, choices=RANKS, help=argparse.SUPPRESS)
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answers:
        arguments.answers.write_text(json.dumps(generate(arguments.model, arguments.ranks)))
        return 0
    if arguments.out is None:
        parser.error("--out is needed: the JSON file to write")
    cases: dict[str, Any] = {}
    for name in arguments.cases:
        one, two = (run_engine(arguments.model, name, ranks) for ranks in RANKS)
        found = differences(one, two)
        ties = sum(is_tie(difference) for difference in found)
        cases[name] = {"answers_that_differ": len(found), "of_them_ties": ties, "first_differences": found}
        print(name, cases[name], flush=True)
        metrics = {
            "model": arguments.model.name,
            "prompt_tokens": LENGTHS,
            "new_tokens": NEW_TOKENS,
            "tie_logprob": TIE,
            "tie_rounding": ROUNDING,
            "frame_pool_tokens": FRAME_TOKENS,
            "cases": cases,
        }
        keep_result(arguments.out, result_document("tensor_parallel_gpu", metrics, gpu_in_words()))
    return int(any(case["answers_that_differ"] > case["of_them_ties"] for case in cases.values()))


if __name__ == "__main__":
    sys.exit(main())
