#!/usr/bin/env python3
"""The prompts that selections are judged by: their seeds and sizes were chosen before any default was.

    PYTHONPATH=scripts python -m benchmarks.selection_coder_prompts FOLDER

Writes ``divergence``, ``recall``, ``ruler`` and ``late.jsonl.xz`` for Qwen2.5-Coder-Instruct: its tokenizer, its chat
format, and texts of the Python and the packages that run this (extras ``eval``, ``ruler``). ``selection_coder`` sends
them; it needs none of these packages.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.checkpoints import MODELS
from rheo_sglang.evaluation.compare_command import COMPARED_TASKS, STEPS, TEXTS_OF_A_KIND, cut_texts
from rheo_sglang.evaluation.late import late_prompts
from rheo_sglang.evaluation.measured import Prompts
from rheo_sglang.evaluation.suites import Request, make_set

SEED = 2000
CONTEXT = 32768
TEXT_LENGTHS = [8192, CONTEXT - 2 * STEPS]
"""The longer leaves room for the forced tokens."""
LENGTHS = {"recall": [8192, 30720], "ruler": [4096, 8192, 16384, CONTEXT]}
SAMPLES = {"recall": 20, "ruler": 10}
LATE_LENGTHS = [8192, 30720]
LATE_SAMPLES = 40


def main() -> None:
    """Make the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--tokenizer", default=str(MODELS / "qwen2.5-coder-0.5b-instruct"), help="checkpoint")
    options = parser.parse_args()
    texts = cut_texts(options.tokenizer, TEXT_LENGTHS, TEXTS_OF_A_KIND, STEPS, SEED)
    prompts = Prompts(texts, late=late_prompts(options.tokenizer, LATE_LENGTHS, LATE_SAMPLES, SEED))
    for suite, lengths in LENGTHS.items():
        request = Request(
            list(COMPARED_TASKS[suite]), lengths, SAMPLES[suite], SEED, options.tokenizer, chat=True
        )
        prompts.conversations[suite] = make_set(suite, request)
    prompts.save(options.folder)
    for suite in prompts.suites:
        path = Prompts.file(options.folder, suite)
        print(f"{path} {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
