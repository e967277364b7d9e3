#!/usr/bin/env python3
"""Divergences between servers that have run: from what ``benchmarks.selection_coder`` kept, without a server.

    PYTHONPATH=scripts python -m benchmarks.kept_divergences --prompts FOLDER --dense work/dense \\
        --other every_page work8/every_page --other fa3_fp8 work8/dense --measured selection.json --out FILE

Servers of several runs can be compared so, and any of them can be the dense one. Figures of NAME: ``kl_NAME_8k`` and
``top1_NAME_8k`` with ``_ci``, and ``loss_NAME``, what the text's own tokens cost, in nats a token; ``loss_dense``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.selection_coder import named
from common.measurement import RESULTS, keep_result, measured_where, result_document
from rheo_sglang.evaluation.divergence import Prompt, Steps, compare
from rheo_sglang.evaluation.measured import Measured, Prompts, divergence_figures


def loss(prompts: list[Prompt], steps: dict[str, Steps]) -> float:
    """Negative log-likelihood of the texts' own tokens, nats a token."""
    return round(fmean(compare(steps[one.key], steps[one.key]).loss for one in prompts), 5)


def main() -> None:
    """Compare and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="folder of selection_prompts")
    parser.add_argument("--model", default="qwen2.5-coder-1.5b-instruct", help="whose they are")
    parser.add_argument("--dense", type=Path, required=True, help="what is compared with")
    parser.add_argument(
        "--other", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"), help="any number"
    )
    parser.add_argument(
        "--measured", type=Path, required=True, help="result of selection_coder: date, machine and versions"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "eight_bits_coder.json")
    options = parser.parse_args()
    prompts = Prompts.load(options.prompts, ["divergence"])
    dense = Measured.load(options.dense, prompts).steps
    metrics: dict[str, Any] = {
        "model": options.model,
        "prompts": len(prompts.texts),
        "loss_dense": loss(prompts.texts, dense),
    }
    for name, folder in options.other:
        steps = Measured.load(Path(folder), prompts).steps
        metrics |= named(divergence_figures(prompts.texts, dense, steps), name)
        metrics[f"loss_{name}"] = loss(prompts.texts, steps)
    document = measured_where(result_document(options.out.stem, metrics), options.measured)
    keep_result(options.out, document)
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
