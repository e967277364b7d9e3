"""`rheo replay`: hit rates of tiering policies over a trace, by capacity and budget, below Belady's bound."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

CAPACITIES = "1,1.25,1.5,2,2.5,3"
SERVER = "server"
MISSING = "{} not installed; run pip install '.[replay]' in the repository."


def add_parser(commands: Any) -> None:
    """Add the subcommand to the ``rheo`` command."""
    parser = commands.add_parser(
        "replay",
        help="what other policies and capacities would have made of a trace (extra 'replay')",
        description="Replays a trace that a server wrote (setting trace): the share of selected pages with a frame, "
        "by tiering policy and capacity, with Belady's MIN as the bound.",
    )
    parser.add_argument("trace", type=Path, help="folder of the trace")
    parser.add_argument(
        "--policies",
        default="all",
        help="tiering policies, separated by commas, belady among them; default: all",
    )
    parser.add_argument(
        "--capacities",
        default=CAPACITIES,
        help="frames relative to the largest selection of a step, or 'server' for those of the traced server; "
        f"default: {CAPACITIES}",
    )
    parser.add_argument(
        "--budgets",
        default="traced",
        help="shares of the pages to select by the traced scores, or 'traced' for what the server selected (default)",
    )
    parser.add_argument(
        "--runners-up",
        default="0",
        help="pages that a selection left out and that are looked at for frames, 64 by a server on the CPU, about 48 "
        "on a GPU; default: 0, where only misses get frames",
    )
    parser.add_argument(
        "--processes", default=str(os.cpu_count() or 1), help="replays at a time; default: cores"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--plot", type=Path, help="file for a plot, .png or .svg")
    parser.set_defaults(run=run_replay)


def run_replay(arguments: argparse.Namespace) -> int:
    """Replay, print and write; the exit status."""
    needed = ["pyarrow", *(["matplotlib"] if arguments.plot else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        return _refuse(MISSING.format(", ".join(missing)))
    from rheo_sglang.errors import ConfigError
    from rheo_sglang.traces import TraceError

    try:
        return _replay(arguments)
    except (ConfigError, TraceError, ArgumentError) as error:
        return _refuse(str(error))


class ArgumentError(Exception):
    """A bad argument, in one sentence."""


def _refuse(sentence: str) -> int:
    print(f"rheo replay: error: {sentence}", file=sys.stderr)
    return 2


def _replay(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rheo_sglang.recorder.report import print_whole
    from rheo_sglang.replay.sweep import Case, sweep
    from rheo_sglang.replay.table import describe, render
    from rheo_sglang.traces import Trace, TraceError

    budgets = _list("--budgets", arguments.budgets, _budget, "traced, or numbers above 0 and at most 1")
    capacities = _list("--capacities", arguments.capacities, _capacity, "server, or numbers of at least 1")
    runners_up = _list("--runners-up", arguments.runners_up, _count, "whole numbers of at least 0")
    processes = _list("--processes", arguments.processes, _processes, "a whole number from 1 to 256")[0]
    policies = _policies(arguments.policies)
    for file in (arguments.json, arguments.plot):
        if file is not None and not file.parent.is_dir():
            raise ArgumentError(f"{file} cannot be written: {file.parent} is no folder")
    if arguments.plot and arguments.plot.suffix not in (".png", ".svg"):
        raise ArgumentError(f"--plot={str(arguments.plot)!r} is not supported; allowed: .png or .svg files")
    trace = Trace(arguments.trace)
    if trace.dropped:
        print(
            f"rheo replay: the server dropped {trace.dropped} steps and prefill passes; what a replay says of steps "
            "after one is not exact",
            file=sys.stderr,
        )
    cases = [
        Case(policy, capacity, count, budget)
        for budget, count, policy, capacity in product(budgets, runners_up, policies, capacities)
    ]
    columns = TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replay", total=len(cases))
        outcomes = sweep(trace, cases, processes, lambda _: progress.advance(task))
    if not any(outcome.selected.sum() for outcome in outcomes):
        raise TraceError(f"{trace.folder} has no step that selects pages")
    entries = describe(outcomes)
    print_whole(render(entries, trace.manifest))
    document = {"manifest": trace.manifest, "dropped": trace.dropped, "replays": entries}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if arguments.plot is not None:
        from rheo_sglang.replay.plots import plot_hit_rates

        plot_hit_rates(entries, trace.manifest, arguments.plot)
    return 0


def _list(name: str, text: str, read: Callable[[str], Any], allowed: str) -> list[Any]:
    try:
        return list(dict.fromkeys(read(part.strip()) for part in text.split(",")))
    except ValueError:
        raise ArgumentError(f"{name}={text!r} is not supported; allowed: {allowed}") from None


def _between(value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise ValueError
    return value


def _budget(text: str) -> float | None:
    return None if text == "traced" else _between(float(text), 1e-9, 1.0)


def _capacity(text: str) -> float | None:
    return None if text == SERVER else _between(float(text), 1.0, 1e6)


def _count(text: str) -> int:
    return int(_between(int(text), 0, 2**20))


def _processes(text: str) -> int:
    return int(_between(int(text), 1, 256))


def _policies(text: str) -> list[str]:
    from rheo_sglang.replay.sweep import BELADY
    from rheo_sglang.tiering import POLICIES

    known = [*POLICIES.names(), BELADY]
    if text == "all":
        return known
    chosen = list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ArgumentError(
            f"--policies={unknown[0]!r} is not supported; allowed: all, or {', '.join(known)}"
        )
    return chosen
