"""`rheo` command: starts servers, looks into running ones and into the installation."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any

from rheo_sglang import doctor, serve


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    parser = argparse.ArgumentParser(prog="rheo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="hit rates, pages and frames of a running server")
    report.add_argument("--url", default="http://127.0.0.1:30000", help="address of the server")
    report.add_argument("--json", action="store_true", help="print JSON instead of tables")
    report.set_defaults(run=run_report)
    doctor.add_parser(commands)
    serve.add_parser(commands)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


def run_report(arguments: argparse.Namespace) -> int:
    """Fetch a server's state and print it."""
    from rheo_sglang.recorder.report import print_report

    try:
        states = fetch_states(arguments.url)
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(
            f"rheo report: error: no SGLang server answers at --url {arguments.url} ({error})",
            file=sys.stderr,
        )
        return 1
    if not states:
        print(
            f"rheo report: error: the server at {arguments.url} does not run --attention-backend rheo",
            file=sys.stderr,
        )
        return 1
    if arguments.json:
        print(json.dumps(states, indent=1))
    else:
        for state in states:
            print_report(state)
    return 0


def fetch_states(url: str) -> list[dict[str, Any]]:
    """The ``rheo`` state of every scheduler behind ``url``; empty if it runs another attention backend."""
    with urllib.request.urlopen(f"{url.rstrip('/')}/server_info", timeout=30) as response:
        info = json.load(response)
    return [state["rheo"] for state in info.get("internal_states", []) if state.get("rheo")]


if __name__ == "__main__":
    sys.exit(main())
