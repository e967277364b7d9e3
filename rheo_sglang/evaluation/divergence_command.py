"""``rheo eval divergence``: how far a server's next tokens are from dense attention's, over real text.

    rheo eval divergence --url http://HOST:30000 --dense-url http://HOST:30001 --out divergence.json
    rheo eval divergence --dense-url http://HOST:30001 --save-dense dense.json.gz
    rheo eval divergence --url http://HOST:30000 --dense dense.json.gz --out divergence.json

Both servers run the same model with ``--enable-custom-logit-processor``; the dense one with any dense attention
backend, or rheo with ``budget_ratio`` 1.0. Each decodes the same real text, token by token, so that every step's
distribution can be compared whatever either of them would have said.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from rheo_sglang.evaluation.divergence import Divergence, ForcedDecoder, Prompt, Steps, compare, interval
from rheo_sglang.evaluation.report import result_document, write_result
from rheo_sglang.evaluation.texts import KINDS


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="rheo eval divergence",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", help="server to be measured")
    parser.add_argument("--dense-url", help="dense server of the same model")
    parser.add_argument("--dense", type=Path, help="what --save-dense wrote, instead of a dense server")
    parser.add_argument("--save-dense", type=Path, help="file to keep the dense distributions in (.json.gz)")
    parser.add_argument("--lengths", default="8192,32000", help="prompt lengths, tokens")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of text")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of each kind and length")
    parser.add_argument("--steps", type=int, default=64, help="decode steps of each prompt")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt of each kind")
    parser.add_argument("--concurrency", type=int, default=4, help="prompts at a time")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds to wait for one reply")
    parser.add_argument("--api-key", help="key of the servers")
    parser.add_argument("--name", default="divergence", help="name of the measurement in the result")
    parser.add_argument("--machine", help="GPU in words, for the result")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    if (options.dense_url is None) == (options.dense is None):
        parser.error("give one of --dense-url and --dense")
    if options.url is None and options.save_dense is None:
        parser.error("give --url, --save-dense, or both")
    if unknown := set(options.kinds.split(",")) - KINDS.keys():
        parser.error(f"--kinds: {sorted(unknown)[0]!r} is not one of {', '.join(KINDS)}")
    return options


class Run:
    """Prompts in order, and what servers make of them, with progress.

    Parameters
    ----------
    options
        The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.lengths = [int(length) for length in options.lengths.split(",")]
        seeds = range(options.seed, options.seed + options.prompts)
        self.cases = [
            (kind, length, seed)
            for length in self.lengths
            for kind in options.kinds.split(",")
            for seed in seeds
        ]

    def decode(self, url: str, what: str) -> dict[tuple[str, int, int], Steps]:
        """Every case's steps by one server."""
        options = self.options
        decoder = ForcedDecoder(url, options.timeout, options.api_key)

        def one(case: tuple[str, int, int]) -> Steps:
            kind, length, seed = case
            prompt: Prompt = decoder.prompt(kind, length, options.steps, seed)
            return decoder.decode(prompt)

        with ThreadPoolExecutor(options.concurrency) as pool:
            results = tqdm(pool.map(one, self.cases), total=len(self.cases), desc=what, unit="prompt")
            return dict(zip(self.cases, results, strict=True))

    def dense(self) -> dict[tuple[str, int, int], Steps]:
        """The dense server's steps, decoded or read; kept if asked for.

        Raises
        ------
        ValueError
            If the file lacks a case.
        """
        options = self.options
        if options.dense is None:
            steps = self.decode(options.dense_url, "dense")
        else:
            with gzip.open(options.dense, "rt") as file:
                kept = {tuple(case): Steps.from_json(data) for case, data in json.load(file)}
            missing = [case for case in self.cases if case not in kept]
            if missing:
                kind, length, seed = missing[0]
                raise ValueError(f"--dense {options.dense} lacks {kind} of {length} tokens with seed {seed}")
            steps = {case: kept[case] for case in self.cases}
        if options.save_dense is not None:
            with gzip.open(options.save_dense, "wt") as file:
                json.dump([(case, one.to_json()) for case, one in steps.items()], file)
        return steps


def summarise(
    divergences: dict[tuple[str, int, int], Divergence], lengths: Sequence[int], kinds: Sequence[str]
) -> dict[str, Any]:
    """Means and half-widths of 95 % intervals over prompts, by length, and by length and kind."""
    metrics: dict[str, Any] = {}
    for length in lengths:
        for kind in ("", *kinds):
            chosen = [
                one for (of, size, _), one in divergences.items() if size == length and kind in ("", of)
            ]
            for field in ("kl", "same_top", "loss", "dense_loss"):
                values = [getattr(one, field) for one in chosen]
                name = f"{field}_{length}" + (f"_{kind}" if kind else "")
                metrics[name] = round(fmean(values), 5)
                metrics[f"{name}_ci"] = round(interval(values), 5) if len(values) > 1 else None
    metrics["prompts"] = len(divergences)
    return metrics


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
    begin = time.monotonic()
    try:
        run = Run(options)
        dense = run.dense()
        if options.url is None:
            return 0
        measured = run.decode(options.url, "measured")
        divergences = {case: compare(dense[case], steps) for case, steps in measured.items()}
    except (OSError, ValueError) as error:
        print(f"rheo eval divergence: {error}", file=sys.stderr)
        return 1
    kinds = options.kinds.split(",")
    metrics = summarise(divergences, run.lengths, kinds)
    metrics["seconds"] = round(time.monotonic() - begin, 1)
    print(f"{'tokens':>8} {'kind':14} {'KL':>8} {'+-':>7} {'same top':>9} {'loss':>7} {'dense':>7}")
    for length in run.lengths:
        for kind in ("", *kinds):
            at = f"{length}" + (f"_{kind}" if kind else "")
            half = metrics[f"kl_{at}_ci"]
            spread = "" if half is None else f"{half:.4f}"
            print(
                f"{length:>8} {kind or 'all':14} {metrics[f'kl_{at}']:8.4f} {spread:>7} "
                f"{metrics[f'same_top_{at}']:9.3f} {metrics[f'loss_{at}']:7.3f} {metrics[f'dense_loss_{at}']:7.3f}"
            )
    if options.out is not None:
        command = shlex.join(["rheo", "eval", "divergence", *arguments])
        document = result_document(options.name, command, metrics, ["sglang", "torch"], options.machine)
        write_result(document, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
