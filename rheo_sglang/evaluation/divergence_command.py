"""``rheo eval divergence``: how far a server's next tokens are from dense attention's, over real text.

    rheo eval divergence --url http://HOST:30000 --dense-url http://HOST:30001 --out divergence.json
    rheo eval divergence --dense-url http://HOST:30001 --save-dense dense.jsonl.gz
    rheo eval divergence --url http://HOST:30000 --dense dense.jsonl.gz --out divergence.json
    rheo eval divergence --tokenizer CHECKPOINT --save-prompts prompts.jsonl.xz

Both servers run the same model with ``--enable-custom-logit-processor``; the dense one with any dense attention
backend, or rheo with ``budget_ratio`` 1.0. Each decodes the same real text, token by token, so that every step's
distribution can be compared whatever either of them would have said.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from rheo_sglang.evaluation.checkpoint_tokenizer import load_tokenizer
from rheo_sglang.evaluation.divergence import (
    Divergence,
    ForcedDecoder,
    Prompt,
    Steps,
    compare,
    cut_prompt,
    decode_all,
    interval,
    load_prompts,
    load_steps,
    save_prompts,
    save_steps,
)
from rheo_sglang.evaluation.options import existing, positive, some_of
from rheo_sglang.evaluation.options import lengths as lengths_of
from rheo_sglang.evaluation.report import result_document, write_result
from rheo_sglang.evaluation.texts import KINDS
from rheo_sglang.server_info import seconds


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="rheo eval divergence",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", help="server to be measured")
    parser.add_argument("--dense-url", help="dense server of the same model")
    parser.add_argument("--dense", type=existing, help="what --save-dense wrote, instead of a dense server")
    parser.add_argument("--save-dense", type=Path, help="file to keep the dense distributions in (.jsonl.gz)")
    parser.add_argument(
        "--save-prompts", type=Path, help="file to keep the prompts in (.jsonl.xz or .jsonl.gz)"
    )
    parser.add_argument(
        "--prompts", type=existing, help="what --save-prompts wrote, instead of making prompts"
    )
    parser.add_argument(
        "--tokenizer", help="checkpoint folder or hub name; default: the server's own, over HTTP"
    )
    parser.add_argument("--lengths", type=lengths_of, default="8192,32000", help="prompt lengths, tokens")
    parser.add_argument("--kinds", type=some_of(KINDS), default=",".join(KINDS), help="kinds of text")
    parser.add_argument("--samples", type=positive, default=4, help="prompts of each kind and length")
    parser.add_argument("--steps", type=positive, default=64, help="decode steps of each prompt")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt of each kind")
    parser.add_argument("--concurrency", type=positive, default=4, help="prompts at a time")
    parser.add_argument("--timeout", type=seconds, default=1800.0, help="seconds to wait for one reply")
    parser.add_argument("--api-key", help="key of the servers")
    parser.add_argument("--name", default="divergence", help="name of the measurement in the result")
    parser.add_argument("--machine", help="GPU in words, for the result")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    if options.dense_url is not None and options.dense is not None:
        parser.error("give one of --dense-url and --dense")
    if options.dense_url is None and options.dense is None:
        if options.url is not None or options.save_prompts is None:
            parser.error("give one of --dense-url and --dense")
        if options.tokenizer is None and options.prompts is None:
            parser.error("without a server give --tokenizer")
    elif options.url is None and options.save_dense is None:
        parser.error("give --url, --save-dense, or both")
    return options


def prompts_of(options: argparse.Namespace) -> list[Prompt]:
    """Read the prompts, or cut them with the tokenizer named or a server's own; keep them if asked for."""
    if options.prompts is not None:
        prompts = load_prompts(options.prompts)
    else:
        encode = encoder(options)
        cases = [
            (kind, length, seed)
            for length in options.lengths
            for kind in options.kinds
            for seed in range(options.seed, options.seed + options.samples)
        ]
        with tqdm(cases, desc="prompts", unit="prompt") as bar:
            prompts = [cut_prompt(encode, kind, length, options.steps, seed) for kind, length, seed in bar]
    if options.save_prompts is not None:
        save_prompts(options.save_prompts, prompts)
    return prompts


def encoder(options: argparse.Namespace) -> Callable[[str], list[int]]:
    """What turns texts into tokens."""
    if options.tokenizer is None:
        return ForcedDecoder(options.dense_url or options.url, options.timeout, options.api_key).encode
    tokenizer = load_tokenizer(options.tokenizer)
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def decode(url: str, prompts: Sequence[Prompt], options: argparse.Namespace, what: str) -> dict[str, Steps]:
    """Every prompt's steps by one server."""
    decoder = ForcedDecoder(url, options.timeout, options.api_key)
    return decode_all(decoder, prompts, options.concurrency, what)


def dense_steps(prompts: Sequence[Prompt], options: argparse.Namespace) -> dict[str, Steps]:
    """The dense server's steps, decoded or read; kept if asked for."""
    if options.dense is not None:
        steps = load_steps(options.dense, prompts)
    else:
        steps = decode(options.dense_url, prompts, options, "dense")
    if options.save_dense is not None:
        save_steps(options.save_dense, steps)
    return steps


def summarise(prompts: Sequence[Prompt], divergences: Mapping[str, Divergence]) -> dict[str, Any]:
    """Means and half-widths of 95 % intervals over prompts, by length, and by length and kind."""
    metrics: dict[str, Any] = {}
    for length in sorted({len(prompt.tokens) for prompt in prompts}):
        for kind in ("", *dict.fromkeys(prompt.kind for prompt in prompts)):
            chosen = [
                divergences[prompt.key]
                for prompt in prompts
                if len(prompt.tokens) == length and kind in ("", prompt.kind)
            ]
            for field in ("kl", "same_top", "loss", "dense_loss"):
                values = [getattr(one, field) for one in chosen]
                name = f"{field}_{length}" + (f"_{kind}" if kind else "")
                metrics[name] = round(fmean(values), 5)
                metrics[f"{name}_ci"] = round(interval(values), 5) if len(values) > 1 else None
    metrics["prompts"] = len(divergences)
    return metrics


def table(prompts: Sequence[Prompt], metrics: Mapping[str, Any]) -> str:
    """A line for each length and kind of text."""
    lines = [f"{'tokens':>8} {'kind':14} {'KL':>8} {'+-':>7} {'same top':>9} {'loss':>7} {'dense':>7}"]
    for length in sorted({len(prompt.tokens) for prompt in prompts}):
        for kind in ("", *dict.fromkeys(prompt.kind for prompt in prompts)):
            at = f"{length}" + (f"_{kind}" if kind else "")
            half = metrics[f"kl_{at}_ci"]
            spread = "" if half is None else f"{half:.4f}"
            lines.append(
                f"{length:>8} {kind or 'all':14} {metrics[f'kl_{at}']:8.4f} {spread:>7} "
                f"{metrics[f'same_top_{at}']:9.3f} {metrics[f'loss_{at}']:7.3f} {metrics[f'dense_loss_{at}']:7.3f}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
    begin = time.monotonic()
    try:
        prompts = prompts_of(options)
        if options.dense_url is None and options.dense is None:
            return 0
        dense = dense_steps(prompts, options)
        if options.url is None:
            return 0
        measured = decode(options.url, prompts, options, "measured")
        divergences = {key: compare(dense[key], steps) for key, steps in measured.items()}
    except (OSError, ValueError, ImportError) as error:
        print(f"rheo eval divergence: {error}", file=sys.stderr)
        return 1
    metrics = summarise(prompts, divergences)
    metrics["seconds"] = round(time.monotonic() - begin, 1)
    print(table(prompts, metrics))
    if options.out is not None:
        command = shlex.join(["rheo", "eval", "divergence", *arguments])
        document = result_document(options.name, command, metrics, ["sglang", "torch"], options.machine)
        write_result(document, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
