#!/usr/bin/env python3
"""rheo on a GPU, with and without CUDA graphs, against SGLang's triton backend: greedy tokens of a tiny random model.

    PYTHONPATH=scripts python -m exactness.server_gpu --out DIR

Each engine runs in a process of its own. Prints one line per engine and writes ``server_gpu.json`` to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.checkpoints import MODELS
from common.measurement import gpu_in_words, keep_result, result_document
from make_tiny_models import TINY_MODELS, make

LENGTHS = (40, 700, 1500, 3000)
NEW_TOKENS = 40
ROUNDS = 2
ENGINES: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "triton": (None, True),
    "rheo exact": ({"budget_ratio": 1.0, "frame_pool_tokens": 1024, "dense_threshold": 512}, True),
    "rheo exact, no graphs": (
        {"budget_ratio": 1.0, "frame_pool_tokens": 1024, "dense_threshold": 512},
        False,
    ),
    "rheo dense shortcut": ({"budget_ratio": 0.1, "frame_pool_tokens": 16384}, True),
    "rheo budget 20 %": (
        {"budget_ratio": 0.2, "budget_min_pages": 16, "dense_threshold": 0, "frame_pool_tokens": 2048},
        True,
    ),
}
"""Settings of every engine (None: SGLang's triton backend) and whether it captures CUDA graphs."""


def generate(model: str, config: dict[str, Any] | None, graphs: bool) -> list[list[int]]:
    """Greedy tokens of one engine for four prompts at once, twice."""
    import random

    import sglang

    random.seed(3)
    prompts = [[random.randrange(3, 256) for _ in range(length)] for length in LENGTHS]
    engine = sglang.Engine(
        model_path=model,
        dtype="float16",
        attention_backend="triton" if config is None else "rheo",
        page_size=32,
        max_total_tokens=32768,
        max_running_requests=16,
        disable_decode_cuda_graph=not graphs,
        cuda_graph_max_bs_decode=8,
        mem_fraction_static=0.85,
        log_level="warning",
        grammar_backend="none",
        skip_tokenizer_init=True,
    )
    sampling = {"temperature": 0.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    answers = []
    for _ in range(ROUNDS):
        answers += engine.generate(input_ids=prompts, sampling_params=sampling)
    tokens = [answer["output_ids"] for answer in answers]
    engine.shutdown()
    return tokens


def run_engine(name: str) -> list[list[int]]:
    """Greedy tokens of one engine in a process of its own; all of them share the GPU."""
    config, _ = ENGINES[name]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, *sys.argv, "--engine", name, "--tokens", file.name]
        environment = {**os.environ, "RHEO_CONFIG": json.dumps(config or {})}
        start = time.monotonic()
        subprocess.run(command, check=True, env=environment)
        tokens: list[list[int]] = json.loads(Path(file.name).read_text())
    print(f"{name}: {time.monotonic() - start:.0f} s, tokens {tokens[0][:12]} ...", flush=True)
    return tokens


def main() -> int:
    """Run every engine and compare; 1 if an exact one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = str(make(TINY_MODELS[0], MODELS))
    if arguments.engine:
        arguments.tokens.write_text(json.dumps(generate(model, *ENGINES[arguments.engine])))
        return 0
    with ThreadPoolExecutor() as pool:
        outputs = dict(zip(ENGINES, pool.map(run_engine, ENGINES), strict=True))
    report: dict[str, Any] = {}
    for name in outputs:
        pairs = zip(outputs["triton"], outputs[name], strict=True)
        report[name] = {"differing_tokens": sum(a != b for p, q in pairs for a, b in zip(p, q, strict=True))}
        print(name, report[name], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    setting = {
        "model": f"{Path(model).name}, random weights, fp16",
        "prompt_tokens": LENGTHS,
        "rounds": ROUNDS,
        "new_tokens": NEW_TOKENS,
    }
    document = result_document("server_gpu", setting | report, gpu_in_words())
    keep_result(arguments.out / "server_gpu.json", document)
    return int(any(report[name]["differing_tokens"] for name in report if name != "rheo budget 20 %"))


if __name__ == "__main__":
    sys.exit(main())
