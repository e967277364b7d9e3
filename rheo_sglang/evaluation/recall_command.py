"""Measure long-context recall of a served model by task and length.

    rheo eval recall --base-url http://127.0.0.1:30000 --model models/rheo-reference \\
        --tasks needle,vartrack --lengths 1024,4096 --out accuracy.json

Any server with OpenAI's ``/v1/completions`` will do. The haystack is the half of Python's own documentation
topics that the reference model was not trained on, unless ``--text`` names files.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from tokenizers import Tokenizer
from tqdm import tqdm

from rheo_sglang.evaluation.haystack import Haystack, documentation_text, token_counter
from rheo_sglang.evaluation.report import metric_name, result_document, write_result
from rheo_sglang.evaluation.server import CompletionClient, converse
from rheo_sglang.evaluation.tasks import TASKS


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="rheo eval recall",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base-url", required=True, help="server address")
    parser.add_argument("--model", required=True, help="model name the server knows")
    parser.add_argument(
        "--tokenizer", help="checkpoint folder or hub name of the tokenizer; default: --model"
    )
    parser.add_argument("--tasks", default=",".join(TASKS), help="task families, comma-separated")
    parser.add_argument(
        "--lengths", default="1024,4096,8192,16384,32768,65536", help="conversation lengths, tokens"
    )
    parser.add_argument("--samples", type=int, default=50, help="samples a task and length")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first sample")
    parser.add_argument("--text", type=Path, nargs="+", help="text files to use as the haystack")
    parser.add_argument("--concurrency", type=int, default=4, help="conversations at a time")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for one reply")
    parser.add_argument("--name", default="evaluation", help="name of the measurement in the result")
    parser.add_argument("--machine", help="GPU in words, for the result")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    return parser.parse_args(arguments)


def load_tokenizer(name: str) -> Tokenizer:
    """Load a fast tokenizer from a checkpoint folder, or from the hub when there is no such folder."""
    path = Path(name)
    return (
        Tokenizer.from_file(str(path / "tokenizer.json"))
        if path.is_dir()
        else Tokenizer.from_pretrained(name)
    )


def evaluate(options: argparse.Namespace) -> dict[str, float]:
    """Run all tasks at all lengths.

    Returns
    -------
    dict of str to float
        ``TASK_LENGTH`` (recall) and ``TASK_LENGTH_exact``, in [0, 1], and ``seconds`` for everything.

    Raises
    ------
    ValueError
        When a task is unknown or a length does not fit.
    requests.RequestException
        When the server fails.
    """
    tasks = options.tasks.split(",")
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"--tasks: {unknown[0]} is not one of {', '.join(TASKS)}")
    lengths = [int(length) for length in options.lengths.split(",")]
    if options.text:
        text = "\n".join(path.read_text(encoding="utf-8") for path in options.text)
    else:
        text = documentation_text(held_out=True)
    count = token_counter(load_tokenizer(options.tokenizer or options.model))
    haystack = Haystack(text, count)
    client = CompletionClient(options.base_url, options.model, options.timeout)
    seeds = range(options.seed, options.seed + options.samples)
    metrics = {}
    begin = time.monotonic()
    conversations = len(tasks) * len(lengths) * options.samples
    with (
        ThreadPoolExecutor(options.concurrency) as pool,
        tqdm(total=conversations, unit="conversation") as bar,
    ):
        for length in lengths:
            for task in tasks:
                bar.set_description(f"{task} {length}")
                samples = (haystack.sample(task, length, seed) for seed in seeds)
                scores = []
                for score in pool.map(
                    lambda sample: converse(client, sample, lambda t: count([t])[0]), samples
                ):
                    scores.append(score)
                    bar.update()
                metrics[metric_name(task, length)] = fmean(score.recall for score in scores)
                metrics[metric_name(task, length) + "_exact"] = fmean(score.exact for score in scores)
    return {**metrics, "samples": options.samples, "seconds": round(time.monotonic() - begin, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, print a table, write the result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
    try:
        metrics = evaluate(options)
    except (OSError, ValueError) as error:
        print(f"rheo eval recall: {error}", file=sys.stderr)
        return 1
    command = shlex.join(["rheo", "eval", "recall", *arguments])
    document = result_document(options.name, command, metrics, ["sglang", "torch"], options.machine)
    write_result(document, options.out)
    for name, value in metrics.items():
        print(f"{name:24} {value:.3f}")
    return 0
