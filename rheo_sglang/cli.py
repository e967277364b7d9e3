"""`rheo` command: looks into running servers and into the installation."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any

from rich.console import Console
from rich.table import Table


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    parser = argparse.ArgumentParser(prog="rheo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="hit rates, pages and frames of a running server")
    report.add_argument("--url", default="http://127.0.0.1:30000", help="address of the server")
    report.add_argument("--json", action="store_true", help="print JSON instead of tables")
    report.set_defaults(run=run_report)
    doctor = commands.add_parser("doctor", help="whether SGLang can load the plugin, and why not")
    doctor.set_defaults(run=run_doctor)
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


def run_doctor(arguments: argparse.Namespace) -> int:
    """Load the plugin as SGLang does, but let its errors through."""
    import importlib
    import importlib.metadata

    table = Table(title="RheoServe", show_header=False)
    for package in ("rheo-sglang", "sglang", "torch", "triton"):
        try:
            table.add_row(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            table.add_row(package, "not installed")
    console = Console()
    console.print(table)
    entries = [entry.name for entry in importlib.metadata.entry_points(group="sglang.srt.plugins")]
    if "rheo" not in entries:
        console.print("The entry point is missing: install the package with 'pip install .'.")
        return 1
    for module in ("plugin", "backend", "pools.allocator", "pools.sizing", "tree.component", "state"):
        importlib.import_module(f"rheo_sglang.{module}")
    importlib.import_module("rheo_sglang.plugin").register()
    console.print("The plugin loads: --attention-backend rheo is available.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
