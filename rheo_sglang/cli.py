"""`rheo` command: starts servers, looks into running ones and into the installation, measures answers."""

from __future__ import annotations

import argparse
import json
import os
import sys

from rheo_sglang import doctor, serve
from rheo_sglang.replay import heatmap_command, replay_command
from rheo_sglang.server_info import ServerInfoError, add_arguments, ask
from rheo_sglang.top import command as top

CLOSED_PIPE = 128 + 13
"""Exit status where the reader of the output has gone, as of a process that ends by SIGPIPE."""
INTERRUPTED = 128 + 2


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    parser = argparse.ArgumentParser(prog="rheo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="hit rates, pages and frames of a running server")
    add_arguments(report)
    report.add_argument("--json", action="store_true", help="print JSON instead of tables")
    report.set_defaults(run=run_report)
    top.add_parser(commands)
    doctor.add_parser(commands)
    serve.add_parser(commands)
    replay_command.add_parser(commands)
    heatmap_command.add_parser(commands)
    evaluation = commands.add_parser(
        "eval",
        help="measures answers: recall of facts, divergence from dense attention (extra 'eval')",
        prefix_chars="\0",
        add_help=False,
    )
    evaluation.add_argument("arguments", nargs=argparse.REMAINDER)
    evaluation.set_defaults(run=run_evaluation)
    arguments = parser.parse_args(argv)
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def run_report(arguments: argparse.Namespace) -> int:
    """Fetch a server's state and print it."""
    from rheo_sglang.recorder.report import print_report

    try:
        states = [state["rheo"] for state in ask(arguments)]
    except ServerInfoError as error:
        print(f"rheo report: error: {error}", file=sys.stderr)
        return error.status
    if arguments.json:
        json.dump(states, sys.stdout, indent=1, allow_nan=False)
        print()
    else:
        for state in states:
            print_report(state)
    return 0


def run_evaluation(arguments: argparse.Namespace) -> int:
    """Run one command of the evaluation, or say what is not installed."""
    from rheo_sglang.evaluation.__main__ import main as evaluate

    return evaluate(arguments.arguments)


if __name__ == "__main__":
    sys.exit(main())
