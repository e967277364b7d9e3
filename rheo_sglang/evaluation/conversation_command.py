"""What ``rheo eval recall`` and ``rheo eval ruler`` share: options, the run, its table and its result."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rheo_sglang.evaluation.conversations import ConversationSet
from rheo_sglang.evaluation.options import existing, positive, some_of
from rheo_sglang.evaluation.options import lengths as lengths_of
from rheo_sglang.evaluation.prompt_files import digest
from rheo_sglang.evaluation.report import metric_name, result_document, write_result
from rheo_sglang.evaluation.score_summary import differences, summarise, table
from rheo_sglang.evaluation.server import ConversationServer, Score, ask_all
from rheo_sglang.evaluation.suites import TASKS_OF, Request, make_set
from rheo_sglang.server_info import seconds


def parse_arguments(
    suite: str, description: str, lengths: str, samples: int, arguments: Sequence[str]
) -> argparse.Namespace:
    """Read the command line of a suite."""
    parser = argparse.ArgumentParser(
        prog=f"rheo eval {suite}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", help="server to be measured; any with OpenAI's completions")
    parser.add_argument("--model", help="model name the server knows; default: the first that it lists")
    parser.add_argument(
        "--tokenizer", help="checkpoint folder or hub name of the tokenizer; default: the server's"
    )
    parser.add_argument(
        "--tasks",
        type=some_of(TASKS_OF[suite]),
        default=",".join(TASKS_OF[suite]),
        help="tasks, comma-separated",
    )
    parser.add_argument("--lengths", type=lengths_of, default=lengths, help="conversation lengths, tokens")
    parser.add_argument("--samples", type=positive, default=samples, help="samples a task and length")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first sample")
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="ask in the model's chat format, or as plain text; default: chat where the tokenizer has a template",
    )
    parser.add_argument(
        "--text", type=existing, nargs="+", default=[], help="text files to use as the haystack"
    )
    parser.add_argument(
        "--save-prompts", type=Path, help="file to keep the prompts in (.jsonl.xz or .jsonl.gz)"
    )
    parser.add_argument(
        "--prompts", type=existing, help="what --save-prompts wrote, instead of making prompts"
    )
    parser.add_argument(
        "--compare", help="second server, or the --out of an earlier run: adds differences, prompt by prompt"
    )
    parser.add_argument("--concurrency", type=positive, default=8, help="conversations at a time")
    parser.add_argument("--timeout", type=seconds, default=1800.0, help="seconds to wait for one reply")
    parser.add_argument("--api-key", help="key of the servers")
    parser.add_argument("--name", default=suite, help="name of the measurement in the result")
    parser.add_argument("--machine", help="GPU in words, for the result")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    if options.url is None and options.save_prompts is None:
        parser.error("give --url, --save-prompts, or both")
    if options.url is None and options.tokenizer is None and options.prompts is None:
        parser.error("without --url give --tokenizer")
    return options


def prompts_of(suite: str, options: argparse.Namespace, server: ConversationServer | None) -> ConversationSet:
    """Read or make the prompts; keep them if asked for."""
    if options.prompts is not None:
        asked = ConversationSet.load(options.prompts, suite).first(options.samples)
    else:
        tokenizer = options.tokenizer or (server.tokenizer() if server else "")
        lengths = options.lengths
        tasks = options.tasks
        request = Request(
            tasks, lengths, options.samples, options.seed, tokenizer, options.chat, tuple(options.text)
        )
        asked = make_set(suite, request)
    if options.save_prompts is not None:
        asked.save(options.save_prompts)
    return asked


def compared_scores(options: argparse.Namespace, asked: ConversationSet, prompts: str) -> Mapping[str, float]:
    """Scores of what ``--compare`` names.

    Raises
    ------
    ValueError
        If the earlier run was of other prompts.
    """
    if options.compare.startswith(("http://", "https://")):
        server = ConversationServer(options.compare, None, options.timeout, options.api_key)
        scores = ask_all(server, asked, options.concurrency, "compared")
        return {key: score.recall for key, score in scores.items()}
    earlier: dict[str, Any] = json.loads(Path(options.compare).read_text(encoding="utf-8"))
    if earlier.get("prompts") != prompts:
        raise ValueError(
            f"--compare {options.compare} is of other prompts: {earlier.get('prompts')}, not {prompts}"
        )
    return earlier["scores"]


def exactness(asked: ConversationSet, scores: Mapping[str, Score]) -> dict[str, float]:
    """Shares of replies that are the expected answer word for word, where one is expected."""
    found: dict[str, list[float]] = {}
    for one in asked.conversations:
        exact = scores[one.key].exact
        if exact is not None:
            found.setdefault(metric_name(one.task, one.length) + "_exact", []).append(exact)
    return {name: fmean(values) for name, values in found.items()}


def run(suite: str, description: str, lengths: str, samples: int, arguments: Sequence[str] | None) -> int:
    """Measure, print a table, write the result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(suite, description, lengths, samples, arguments)
    begin = time.monotonic()
    try:
        server = (
            ConversationServer(options.url, options.model, options.timeout, options.api_key)
            if options.url
            else None
        )
        asked = prompts_of(suite, options, server)
        if server is None:
            return 0
        prompts = digest(one.to_json() for one in asked.conversations)
        scores = ask_all(server, asked, options.concurrency, suite)
        found = {key: score.recall for key, score in scores.items()}
        metrics = summarise(asked.conversations, found) | exactness(asked, scores)
        if options.compare is not None:
            metrics |= differences(asked.conversations, found, compared_scores(options, asked, prompts))
    except (OSError, ValueError, ImportError) as error:
        print(f"rheo eval {suite}: {error}", file=sys.stderr)
        return 1
    metrics |= {"samples": options.samples, "seconds": round(time.monotonic() - begin, 1)}
    print(table(asked.conversations, metrics))
    if options.out is not None:
        command = shlex.join(["rheo", "eval", suite, *arguments])
        document = result_document(options.name, command, metrics, ["sglang", "torch"], options.machine)
        write_result({**document, "chat": asked.chat, "prompts": prompts, "scores": found}, options.out)
    return 0
