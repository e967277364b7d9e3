#!/usr/bin/env python3
"""The prompts that selections are judged by: their seeds and sizes were chosen before any default was.

    PYTHONPATH=scripts python -m benchmarks.selection_prompts FOLDER [--model smollm2]

Writes ``divergence``, ``recall``, ``ruler`` and ``late.jsonl.xz``, as far as a model has them: Qwen2.5-Coder-Instruct
up to 32K tokens, SmolLM2 up to 8K, the reference model up to 64K. Tokenizer and chat format are the model's, texts are
of the Python and the packages that run this (extras ``eval``, ``ruler``). ``selection_coder`` sends them; it needs none
of these packages.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from common.checkpoints import MODELS
from common.measurement import REPOSITORY
from rheo_sglang.evaluation.compare_command import COMPARED_TASKS, STEPS, TEXTS_OF_A_KIND, cut_texts
from rheo_sglang.evaluation.late import late_prompts
from rheo_sglang.evaluation.measured import Prompts
from rheo_sglang.evaluation.suites import Request, make_set

SEED = 2000
SAMPLES = {"recall": 20, "ruler": 10}
LATE_SAMPLES = 40


@dataclass(frozen=True)
class Judged:
    """A model, and how long the prompts are that it is judged by, in tokens.

    Attributes
    ----------
    checkpoint
        Folder that has the tokenizer.
    texts, late
        Of texts to be continued, and of those with a fact that is asked for late.
    conversations
        Of each suite of questions; the longest texts and questions leave room for what is answered.
    """

    checkpoint: Path
    texts: list[int]
    conversations: dict[str, list[int]]
    late: list[int] = field(default_factory=list)


MODELS_JUDGED = {
    "coder": Judged(
        MODELS / "qwen2.5-coder-0.5b-instruct",
        [8192, 32768 - 2 * STEPS],
        {"recall": [8192, 30720], "ruler": [4096, 8192, 16384, 32768]},
        [8192, 30720],
    ),
    "smollm2": Judged(
        MODELS / "smollm2-135m-instruct",
        [8192 - 2 * STEPS],
        {"recall": [4096, 7168], "ruler": [4096, 8192]},
    ),
    "reference": Judged(
        REPOSITORY / "models" / "rheo-reference", [8192, 65536], {"recall": [8192, 32768, 61440]}
    ),
}


def main() -> None:
    """Make the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--model", choices=MODELS_JUDGED, default="coder", help="whose prompts")
    parser.add_argument("--tokenizer", type=Path, help="checkpoint folder, if it is not where scripts put it")
    options = parser.parse_args()
    judged = MODELS_JUDGED[options.model]
    tokenizer = str(options.tokenizer or judged.checkpoint)
    prompts = Prompts(cut_texts(tokenizer, judged.texts, TEXTS_OF_A_KIND, STEPS, SEED))
    if judged.late:
        prompts.late = late_prompts(tokenizer, judged.late, LATE_SAMPLES, SEED)
    for suite, lengths in judged.conversations.items():
        request = Request(list(COMPARED_TASKS[suite]), lengths, SAMPLES[suite], SEED, tokenizer, chat=True)
        prompts.conversations[suite] = make_set(suite, request)
    prompts.save(options.folder)
    for suite in prompts.suites:
        path = Prompts.file(options.folder, suite)
        print(f"{path} {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
