#!/usr/bin/env python3
"""Accuracy of the reference model by task and length: served by SGLang's dense attention, and by rheo at small budgets.

    PYTHONPATH=scripts python -m studies.reference_budgets
    PYTHONPATH=scripts python -m studies.reference_budgets --engines dense rheo10 --lengths 1024,4096 --out FILE

Every engine is a server of its own that answers the same conversations; on a GPU the dense one is fa3, on the CPU
torch_native. Rheo is sparse at every length here. It never attends fewer than `budget_min_pages` pages, which at 1K
tokens are half of them. Adds ``dense_TASK_LENGTH`` and ``rheo5_``, ``rheo10_`` and ``rheo20_TASK_LENGTH``, each also
with ``_exact``, to ``docs/benchmarks/results/reference_model.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from common.measurement import REPOSITORY, RESULTS, gpu_in_words, keep_result, result_document
from common.sglang_server import SGLangServer
from rheo_sglang.evaluation.tasks import TASKS

GPU = torch.cuda.is_available()
PAGE_SIZE = 32
BUDGETS = {"rheo5": 0.05, "rheo10": 0.1, "rheo20": 0.2}
ENGINES = ("dense", *BUDGETS)
ROOM = 8
"""Longest conversations that the KV cache holds."""


def server_arguments(name: str, longest: int) -> list[str]:
    """Command line of one engine's server for conversations of up to ``longest`` tokens."""
    room = longest + 1024
    common = ["--max-total-tokens", str(ROOM * room), "--context-length", str(room)]
    common += ["--grammar-backend", "none"]
    if GPU:
        common += ["--dtype", "bfloat16", "--mem-fraction-static", "0.5", "--disable-prefill-cuda-graph"]
    if name == "dense":
        return [*common, "--attention-backend", "fa3" if GPU else "torch_native"]
    config = {"budget_ratio": BUDGETS[name], "budget_min_pages": 16, "dense_threshold": 0}
    rheo = ["--attention-backend", "rheo", "--page-size", str(PAGE_SIZE), "--rheo-config", json.dumps(config)]
    return [*common, *rheo]


def accuracy(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Serve the model by one engine and evaluate it."""
    lengths = [int(length) for length in options.lengths.split(",")]
    out = folder / f"{name}.json"
    arguments = server_arguments(name, max(lengths))
    with SGLangServer(options.model, arguments, folder / f"{name}.log", gpu=GPU) as server:
        command = [sys.executable, "-m", "rheo_sglang.evaluation", "recall", "--url", server.base_url]
        command += ["--tasks", ",".join(TASKS), "--lengths", options.lengths, "--out", str(out)]
        command += ["--samples", str(options.samples), "--concurrency", str(options.concurrency)]
        if options.text:
            command += ["--text", *map(str, options.text)]
        subprocess.run(command, check=True)
    metrics: dict[str, float] = json.loads(out.read_text())["metrics"]
    return {f"{name}_{key}": value for key, value in metrics.items()}


def main() -> None:
    """Evaluate every engine and add its figures to the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--model", type=Path, default=REPOSITORY / "models" / "rheo-reference")
    parser.add_argument("--lengths", default="1024,4096,8192,16384,32768,65536", help="tokens")
    parser.add_argument("--samples", type=int, default=16, help="conversations of a task and length")
    parser.add_argument("--concurrency", type=int, default=4, help="conversations at a time")
    parser.add_argument("--text", type=Path, nargs="+", help="text files to use as the haystack")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "reference_model.json", help="JSON file to add to"
    )
    options = parser.parse_args()
    before = json.loads(options.out.read_text()) if options.out.exists() else None
    metrics = dict(before["metrics"]) if before else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.engines:
            print(f"== {name}", flush=True)
            metrics |= accuracy(name, options, Path(folder))
            document = result_document("reference_model", metrics, gpu_in_words() if GPU else None)
            if before:
                document["command"] = f"{before['command']}; {document['command']}"
            keep_result(options.out, document)


if __name__ == "__main__":
    main()
