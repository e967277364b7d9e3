"""``rheo eval compare``: is a server as good as dense attention? Divergence, recall and RULER, in one table.

    rheo eval compare --dense-url http://HOST:30001 --url http://HOST:30000

Where both do not fit on one machine, one after the other:

    rheo eval compare --dense-url http://HOST:30000 --save-dense dense
    rheo eval compare --dense dense --url http://HOST:30000 --out compare.json

Both are SGLang servers of one model with ``--enable-custom-logit-processor``, and have this package installed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rheo_sglang.evaluation.checkpoint_tokenizer import load_tokenizer
from rheo_sglang.evaluation.divergence import Prompt, cut_prompt
from rheo_sglang.evaluation.late import late_prompts
from rheo_sglang.evaluation.measured import (
    SUITES,
    Measured,
    Prompts,
    divergence_figures,
    late_figures,
    score_figures,
)
from rheo_sglang.evaluation.options import existing, positive, some_of
from rheo_sglang.evaluation.options import lengths as lengths_of
from rheo_sglang.evaluation.report import result_document, write_result
from rheo_sglang.evaluation.server import ConversationServer
from rheo_sglang.evaluation.suites import TASKS_OF, Request, make_set
from rheo_sglang.evaluation.texts import KINDS
from rheo_sglang.server_info import seconds

COMPARED_TASKS = {
    "recall": ("embedded", "buried", "multikey", "multivalue", "vartrack"),
    "ruler": TASKS_OF["ruler"],
}
"""One question each, so that a prompt counts once."""
STEPS = 32
TEXTS_OF_A_KIND = 4


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="rheo eval compare",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", help="server to be measured")
    parser.add_argument("--dense-url", help="dense server of the same model")
    parser.add_argument("--dense", type=existing, help="what --save-dense wrote, instead of a dense server")
    parser.add_argument("--save-dense", type=Path, help="folder to keep the dense server's answers in")
    parser.add_argument(
        "--suites",
        type=some_of(SUITES),
        default="divergence,recall",
        help="of divergence, recall, ruler (extra 'ruler'), late",
    )
    parser.add_argument("--lengths", type=lengths_of, default="8192,30720", help="prompt lengths, tokens")
    parser.add_argument(
        "--samples", type=positive, default=20, help="conversations a task and length, late answers a length"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first sample")
    parser.add_argument("--tokenizer", help="checkpoint folder or hub name; default: the server's")
    parser.add_argument(
        "--prompts", type=existing, help="what --save-prompts wrote, instead of making prompts"
    )
    parser.add_argument("--save-prompts", type=Path, help="folder to keep the prompts in")
    parser.add_argument("--concurrency", type=positive, default=8, help="requests at a time")
    parser.add_argument("--timeout", type=seconds, default=1800.0, help="seconds to wait for one reply")
    parser.add_argument("--api-key", help="key of the servers")
    parser.add_argument("--name", default="compare", help="name of the measurement in the result")
    parser.add_argument("--machine", help="GPU in words, for the result")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    if options.dense_url is not None and options.dense is not None:
        parser.error("give one of --dense-url and --dense")
    if options.url is not None and options.dense_url is None and options.dense is None:
        parser.error("give one of --dense-url and --dense")
    if options.url is None and options.save_dense is None and options.save_prompts is None:
        parser.error("give --url, --save-dense or --save-prompts")
    if (
        options.url is None
        and options.dense_url is None
        and None in (options.tokenizer, options.save_prompts)
    ):
        parser.error("without a server give --tokenizer and --save-prompts")
    return options


def cut_texts(tokenizer: str, lengths: Sequence[int], samples: int, steps: int, seed: int) -> list[Prompt]:
    """Prompts of the divergence: every kind of text at every length, with progress."""
    loaded = load_tokenizer(tokenizer)

    def encode(text: str) -> list[int]:
        return list(loaded.encode(text, add_special_tokens=False).ids)

    cases = [
        (kind, length, one) for length in lengths for kind in KINDS for one in range(seed, seed + samples)
    ]
    with tqdm(cases, desc="divergence prompts", unit="prompt") as bar:
        return [cut_prompt(encode, kind, length, steps, one) for kind, length, one in bar]


def prompts_of(options: argparse.Namespace) -> Prompts:
    """Read or make the prompts; keep them if asked for."""
    suites = options.suites
    if options.prompts is not None:
        prompts = Prompts.load(options.prompts, suites)
    else:
        prompts = Prompts()
        lengths = options.lengths
        tokenizer = options.tokenizer
        if tokenizer is None:
            url = options.dense_url or options.url
            tokenizer = ConversationServer(url, None, options.timeout, options.api_key).tokenizer()
        for suite in suites:
            if suite == "divergence":
                prompts.texts = cut_texts(tokenizer, lengths, TEXTS_OF_A_KIND, STEPS, options.seed)
            elif suite == "late":
                prompts.late = late_prompts(tokenizer, lengths, options.samples, options.seed)
            else:
                tasks = list(COMPARED_TASKS[suite])
                request = Request(tasks, lengths, options.samples, options.seed, tokenizer)
                prompts.conversations[suite] = make_set(suite, request)
    if options.save_prompts is not None:
        prompts.save(options.save_prompts)
    return prompts


def measure(url: str, prompts: Prompts, options: argparse.Namespace, what: str) -> Measured:
    """Run all suites on one server."""
    measured = Measured()
    for suite in prompts.suites:
        print(f"{what}: {suite}", file=sys.stderr)
        measured.run(
            suite, prompts, url, options.concurrency, timeout=options.timeout, api_key=options.api_key
        )
    return measured


def figures_of(prompts: Prompts, dense: Measured, measured: Measured) -> dict[str, Any]:
    """Figures of both; the dense server's have ``dense_`` before them.

    Raises
    ------
    ValueError
        If the dense server has not run a suite.
    """
    if missing := [suite for suite in measured.suites if suite not in dense.suites]:
        raise ValueError(f"the dense answers lack {missing[0]}")
    found: dict[str, Any] = {}
    if measured.steps:
        found |= divergence_figures(prompts.texts, dense.steps, measured.steps)
    found |= score_figures(prompts, measured, dense) | late_figures(prompts, measured, dense)
    of_dense = score_figures(prompts, dense) | late_figures(prompts, dense)
    return found | {f"dense_{name}": value for name, value in of_dense.items()}


def table(metrics: Mapping[str, Any]) -> str:
    """One line for each figure: dense, measured, difference, each with half of its 95 % interval."""

    def cell(name: str, sign: str = "") -> str:
        if name not in metrics:
            return ""
        half = metrics.get(f"{name}_ci")
        return f"{metrics[name]:{sign}.4f}" + ("" if half is None else f" +- {half:.4f}")

    names = [
        name
        for name in metrics
        if not name.startswith("dense_") and not name.endswith(("_ci", "_difference", "prompts", "seconds"))
    ]
    lines = [f"{'':14} {'dense':>18} {'measured':>18} {'difference':>18}"]
    for name in names:
        cells = (cell(f"dense_{name}"), cell(name), cell(f"{name}_difference", "+"))
        lines.append(f"{name:14} " + " ".join(f"{one:>18}" for one in cells))
    lines.append(
        "kl: nats from dense attention, 0 is equal. top1: share of steps with the same first choice."
    )
    lines.append("A difference within its +- is no difference that these prompts can show; raise --samples.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
    begin = time.monotonic()
    try:
        prompts = prompts_of(options)
        if options.dense is not None:
            dense = Measured.load(options.dense, prompts)
        elif options.dense_url is not None:
            dense = measure(options.dense_url, prompts, options, "dense")
        else:
            return 0
        if options.save_dense is not None:
            dense.save(options.save_dense, prompts)
        if options.url is None:
            return 0
        measured = measure(options.url, prompts, options, "measured")
        metrics = figures_of(prompts, dense, measured)
    except (OSError, ValueError, ImportError) as error:
        print(f"rheo eval compare: {error}", file=sys.stderr)
        return 1
    metrics["seconds"] = round(time.monotonic() - begin, 1)
    print(table(metrics))
    if options.out is not None:
        command = shlex.join(["rheo", "eval", "compare", *arguments])
        document = result_document(options.name, command, metrics, ["sglang", "torch"], options.machine)
        write_result(document, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
