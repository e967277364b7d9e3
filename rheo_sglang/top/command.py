"""`rheo top`: asks a running server again and again, and shows what it says."""

from __future__ import annotations

import argparse
import re
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

from rheo_sglang.server_info import ServerInfoError, add_arguments, ask, seconds

PICTURE_COLUMNS = 110
FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""What a picture says of fonts to be fetched from elsewhere; without it a monospaced one is used that is there."""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the ``rheo`` command."""
    top = commands.add_parser("top", help="live view of a running server: hits, misses, frames, requests")
    add_arguments(top)
    top.add_argument("--interval", type=seconds, default=2.0, help="seconds between two looks")
    top.add_argument("--once", action="store_true", help="look once, at everything since the start, and end")
    top.add_argument("--svg", type=Path, metavar="FILE", help="look once, and draw the view into this file")
    top.set_defaults(run=run_top)


def run_top(arguments: argparse.Namespace) -> int:
    """Show the server until interrupted, or once. A server that is not there at first ends the command."""
    from rich.console import Console

    from rheo_sglang.recorder.report import print_whole
    from rheo_sglang.top.look import looks
    from rheo_sglang.top.view import render

    try:
        seen = looks(ask(arguments), time.monotonic(), [])
    except ServerInfoError as error:
        print(f"rheo top: error: {error}", file=sys.stderr)
        return error.status
    if arguments.svg is not None:
        return _draw(render(seen, arguments.url), arguments.svg)
    console = Console()
    if arguments.once:
        print_whole(render(seen, arguments.url))
        return 0
    try:
        if console.is_terminal:
            _watch(arguments, console, seen)
            return 0
        return _print(arguments, seen)
    except KeyboardInterrupt:
        return 0


def _draw(view: Any, path: Path) -> int:
    """Into a picture of a terminal."""
    from rich.console import Console

    console = Console(record=True, file=StringIO(), width=PICTURE_COLUMNS, force_terminal=True)
    console.print(view)
    picture = FONT.sub("", console.export_svg(title="rheo top", unique_id="rheo-top"))
    try:
        path.write_text(picture)
    except OSError as error:
        print(f"rheo top: error: {path} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _watch(arguments: argparse.Namespace, console: Any, seen: list[Any]) -> None:
    """On a terminal: one view in place. While the server does not answer, it says so and shows what was known."""
    from rich.live import Live

    from rheo_sglang.top.look import looks
    from rheo_sglang.top.view import render

    with Live(render(seen, arguments.url), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(arguments.interval)
            note = ""
            try:
                seen = looks(ask(arguments), time.monotonic(), seen)
            except ServerInfoError as error:
                note = f"{error}; asking again"
            live.update(render(seen, arguments.url, note), refresh=True)


def _print(arguments: argparse.Namespace, seen: list[Any]) -> int:
    """Into a pipe or a file: one view after the other, until the server does not answer."""
    from rheo_sglang.recorder.report import print_whole
    from rheo_sglang.top.look import looks
    from rheo_sglang.top.view import render

    while True:
        print_whole(render(seen, arguments.url))
        time.sleep(arguments.interval)
        try:
            seen = looks(ask(arguments), time.monotonic(), seen)
        except ServerInfoError as error:
            print(f"rheo top: error: {error}", file=sys.stderr)
            return error.status
