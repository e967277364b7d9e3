#!/usr/bin/env python3
"""Selections judged through the server: dense attention once, then each rheo configuration, over the same prompts.

    PYTHONPATH=scripts python -m benchmarks.selection_coder --model CHECKPOINT --prompts FOLDER --servers servers.json

``servers.json`` maps names to further server arguments, in the order in which they run::

    {"dense": "--attention-backend fa3",
     "bound_4pct": "--attention-backend rheo --page-size 32 --rheo-config '{\\"summary\\": \\"bound\\", ...}'",
     "2pct": "--attention-backend rheo --page-size 16 --rheo-config '{\\"budget_ratio\\": 0.02}'"}

``dense`` comes first; what it says is kept in the working folder and need not be said again. So is what every other
server says, suite by suite: a run that was cut off goes on where it stopped, and the result is written after every
suite. Figures of the server NAME: ``kl_NAME_8k``, ``top1_NAME_8k``, ``recall_NAME``, ``ruler_NAME``, each with ``_ci``,
and ``recall_NAME_difference`` from dense, prompt by prompt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.measurement import RESULTS, gpu_in_words, keep_result, result_document
from common.sglang_server import SGLangServer
from rheo_sglang.evaluation.measured import (
    SUITES,
    Measured,
    Prompts,
    divergence_figures,
    late_figures,
    score_figures,
)

GPU = torch.cuda.is_available()
DENSE = "dense"
ABOUT_FILE = "about.json"
COMMON = ["--enable-custom-logit-processor", "--grammar-backend", "none"]
COMMON_GPU = ["--dtype", "bfloat16", "--mem-fraction-static", "0.6", "--disable-prefill-cuda-graph"]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--prompts", type=Path, required=True, help="folder of selection_prompts")
    parser.add_argument("--servers", type=Path, required=True, help="JSON file: names and server arguments")
    parser.add_argument(
        "--work", type=Path, default=Path(".selection_coder"), help="folder for what servers say"
    )
    parser.add_argument("--suites", default=",".join(SUITES), help="comma-separated")
    parser.add_argument(
        "--samples", nargs="+", default=[], metavar="SUITE=N", help="fewer conversations a task and length"
    )
    parser.add_argument("--longest", type=int, default=1 << 20, help="longest prompts to send, tokens")
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at a time")
    parser.add_argument("--common", default="", help="further arguments of every server")
    parser.add_argument(
        "--ahead",
        action="store_true",
        help="start the next server during a measurement; there is room for two",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "selection_coder.json", help="result file")
    return parser.parse_args()


def load_prompts(options: argparse.Namespace) -> Prompts:
    """The prompts, or the part of them that was asked for."""
    prompts = Prompts.load(options.prompts, options.suites.split(","))
    prompts.texts, prompts.late = (
        [one for one in texts if len(one.tokens) <= options.longest]
        for texts in (prompts.texts, prompts.late)
    )
    samples = dict(text.split("=") for text in options.samples)
    for suite, asked in prompts.conversations.items():
        chosen = asked.first(int(samples[suite])) if suite in samples else asked
        prompts.conversations[suite] = chosen.up_to(options.longest)
    return prompts


def missing_suites(name: str, prompts: Prompts, options: argparse.Namespace) -> list[str]:
    """Suites that a server has not run."""
    done = Measured.load(options.work / name, prompts).suites
    return [suite for suite in prompts.suites if suite not in done]


def start(name: str, arguments: str, options: argparse.Namespace) -> SGLangServer:
    """A server that is starting, on a free port."""
    line = [*COMMON, *(COMMON_GPU if GPU else []), *shlex.split(options.common), *shlex.split(arguments)]
    server = SGLangServer(options.model, line, options.work / f"{name}.log", gpu=GPU)
    server.start()
    return server


def measure(
    name: str,
    server: SGLangServer,
    prompts: Prompts,
    options: argparse.Namespace,
    suite_done: Callable[[str, Measured, dict[str, float]], None],
) -> None:
    """Run the suites that a server has not run; tell what is known of it after each."""
    folder = options.work / name
    measured = Measured.load(folder, prompts)
    about = told_about(name, options)
    for suite in missing_suites(name, prompts, options):
        begin = time.monotonic()
        measured.run(suite, prompts, server.base_url, options.concurrency)
        about[f"seconds_{name}_{suite}"] = round(time.monotonic() - begin, 1)
        measured.save(folder, prompts)
        (state,) = server.server_info()["internal_states"]
        recorder = state.get("rheo", {}).get("recorder", {}).get("overall", {})
        about |= {f"{key}_{name}": value for key, value in recorder.items() if isinstance(value, int | float)}
        (folder / ABOUT_FILE).write_text(json.dumps(about) + "\n")
        suite_done(name, measured, about)


def told_about(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Times and counters of what a server has run."""
    file = options.work / name / ABOUT_FILE
    return json.loads(file.read_text()) if file.exists() else {}


def named(figures: dict[str, float], name: str) -> dict[str, float]:
    """Figures of one server: its name goes behind the first word of theirs."""
    found = {}
    for key, value in figures.items():
        first, *rest = key.split("_")
        found["_".join([first, name, *rest])] = value
    return found


def main() -> None:
    """Run all servers, one after the other."""
    options = parse_arguments()
    servers: dict[str, str] = json.loads(options.servers.read_text())
    if next(iter(servers)) != DENSE:
        raise SystemExit(f"--servers {options.servers}: the first is not {DENSE!r}")
    prompts = load_prompts(options)
    metrics: dict[str, Any] = {
        "prompts": len(prompts.texts)
        + len(prompts.late)
        + sum(len(one.conversations) for one in prompts.conversations.values()),
        "prompts_divergence": len(prompts.texts),
        "servers": servers,
    }

    def suite_done(name: str, measured: Measured, about: dict[str, float]) -> None:
        dense = Measured.load(options.work / DENSE, prompts)
        found: dict[str, float] = {}
        if name != DENSE and measured.steps and dense.steps:
            found |= divergence_figures(prompts.texts, dense.steps, measured.steps)
        against = None if name == DENSE else dense
        found |= score_figures(prompts, measured, against) | late_figures(prompts, measured, against)
        metrics.update(named(found, name) | about)
        document = result_document(options.out.stem, metrics, gpu_in_words() if GPU else None)
        keep_result(options.out, document)

    failed = []
    names = [name for name in servers if missing_suites(name, prompts, options)]
    for name in servers:
        if name not in names:
            suite_done(name, Measured.load(options.work / name, prompts), told_about(name, options))
    started: dict[str, SGLangServer] = {}
    try:
        for i, name in enumerate(names):
            print(f"== {name}", flush=True)
            server = started.pop(name, None) or start(name, servers[name], options)
            with contextlib.ExitStack() as stack:
                stack.callback(server.stop)
                try:
                    begin = time.monotonic()
                    server.wait_ready()
                    metrics[f"seconds_{name}_start"] = round(time.monotonic() - begin, 1)
                    if options.ahead and i + 1 < len(names):
                        started[names[i + 1]] = start(names[i + 1], servers[names[i + 1]], options)
                    measure(name, server, prompts, options, suite_done)
                except (OSError, RuntimeError, ValueError) as error:
                    if name == DENSE:
                        raise
                    print(f"{name} failed: {error}", flush=True)
                    failed.append(name)
            shown = {key: value for key, value in metrics.items() if f"_{name}" in key}
            print(json.dumps(shown, indent=1), flush=True)
    finally:
        for server in started.values():
            server.stop()
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
