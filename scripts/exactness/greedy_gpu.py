#!/usr/bin/env python3
"""Greedy tokens of SmolLM2 in bfloat16 on a GPU: rheo with every page selected, against SGLang's fa3.

    PYTHONPATH=scripts python -m exactness.greedy_gpu --model DIR --out FILE

Eight prompts of real text at once. Where an answer differs from fa3's, the first difference is judged by fa3's own
log-probabilities of the two tokens: bfloat16 logits of this size are 1/8 apart (SmolLM2's likeliest are 16 to 32), and
each of the two may be a step off, so two tokens at most two steps apart are a tie. What follows a difference answers
another prompt and is not compared.
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

from common.measurement import MODEL, gpu_in_words, keep_result, result_document, text_prompts

LENGTHS = [200, 500, 900, 1400, 2000, 2700, 3400, 4000]
NEW_TOKENS = 48
TIE = 0.25
"""Two steps of bfloat16 between 16 and 32."""
ROUNDING = 1e-4
"""Of log-probabilities, which are float32 differences: two steps come out as 0.25000006 as well."""
TOP = 5
SELECT_ALL = {"budget_ratio": 1.0, "dense_threshold": 0}
FRAME_TOKENS = sum(LENGTHS) // 10 // 32 * 32
ENGINES: dict[str, dict[str, Any] | None] = {
    "fa3": None,
    **{
        f"frames for 10 %, {mode}": {**SELECT_ALL, "frame_pool_tokens": FRAME_TOKENS, "miss_mode": mode}
        for mode in ("fetch", "split", "auto")
    },
    "dense shortcut": {"budget_ratio": 0.1, "dense_threshold": 8192},
}


def generate(model: Path, config: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Tokens of one engine's answers, and the log-probabilities of the likeliest ones at every position."""
    import sglang

    engine = sglang.Engine(
        model_path=str(model),
        dtype="bfloat16",
        attention_backend="fa3" if config is None else "rheo",
        page_size=1 if config is None else 32,
        max_total_tokens=32768,
        max_running_requests=16,
        context_length=8192,
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


def ask(engine: Any, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Greedy answers of an ``sglang.Engine``, all at once; see `generate`."""
    answers = engine.generate(
        input_ids=prompts,
        sampling_params={"temperature": 0.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True},
        return_logprob=True,
        top_logprobs_num=TOP,
    )
    return [
        {
            "tokens": answer["output_ids"],
            "top": [
                [[float(entry[0]), int(entry[1])] for entry in position]
                for position in answer["meta_info"]["output_top_logprobs"]
            ],
        }
        for answer in answers
    ]


def differences(expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first difference of every answer that has one, and how far apart fa3 puts the two tokens."""
    found = []
    for prompt, (dense, mine) in enumerate(zip(expected, actual, strict=True)):
        pairs = zip(dense["tokens"], mine["tokens"], strict=True)
        position = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if position is None:
            continue
        chances = {token: chance for chance, token in dense["top"][position]}
        best, other = dense["tokens"][position], mine["tokens"][position]
        gap = chances[best] - chances[other] if other in chances else None
        found.append({"prompt": prompt, "position": position, "logprob_gap": gap})
    return found


def is_tie(difference: dict[str, Any]) -> bool:
    """Whether fa3 puts the two tokens of one of `differences` as close as bfloat16 errors may."""
    gap: float | None = difference["logprob_gap"]
    return gap is not None and gap <= TIE + ROUNDING


def run_engine(name: str, model: Path) -> list[dict[str, Any]]:
    """Answers of one engine in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [
            sys.executable,
            "-m",
            "exactness.greedy_gpu",
            "--model",
            str(model),
            "--engine",
            name,
            "--answers",
            file.name,
        ]
        environment = {**os.environ, "RHEO_CONFIG": json.dumps(ENGINES[name] or {})}
        start = time.monotonic()
        subprocess.run(command, check=True, env=environment)
        answers: list[dict[str, Any]] = json.loads(Path(file.name).read_text())
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return answers


def main() -> int:
    """Run every engine and compare; 1 if an answer differs where fa3 sees no tie."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="SmolLM2's checkpoint")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        arguments.answers.write_text(json.dumps(generate(arguments.model, ENGINES[arguments.engine])))
        return 0
    if arguments.out is None:
        parser.error("--out is needed: the JSON file to write")
    dense = run_engine("fa3", arguments.model)
    cases: dict[str, Any] = {}
    for name in list(ENGINES)[1:]:
        found = differences(dense, run_engine(name, arguments.model))
        ties = sum(is_tie(one) for one in found)
        cases[name] = {"answers_that_differ": len(found), "of_them_ties": ties, "first_differences": found}
        print(name, cases[name], flush=True)
    metrics = {
        "model": "SmolLM2-135M-Instruct, bfloat16",
        "prompt_tokens": LENGTHS,
        "new_tokens": NEW_TOKENS,
        "tie_logprob": TIE,
        "tie_rounding": ROUNDING,
        "frame_pool_tokens": FRAME_TOKENS,
        "cases": cases,
    }
    document = result_document("exactness_gpu", metrics, gpu_in_words())
    keep_result(arguments.out, document)
    return int(any(case["answers_that_differ"] > case["of_them_ties"] for case in cases.values()))


if __name__ == "__main__":
    sys.exit(main())
