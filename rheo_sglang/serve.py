"""`rheo serve`: SGLang's server with ``--attention-backend rheo``, on a GPU or, where there is none, on the CPU.

SGLang decides whether it runs on a CPU when its modules load, before any plugin or argument is read, so that what it
takes has to be in the environment of a new process.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

from rheo_sglang.sglang_settings import CPU_ENGINE

BACKEND_FLAG = "--attention-backend"


def add_parser(commands: Any) -> None:
    """Add the subcommand to the ``rheo`` command; all arguments after it are SGLang's."""
    serve = commands.add_parser(
        "serve",
        help="start SGLang's server with --attention-backend rheo; takes SGLang's arguments",
        prefix_chars="\0",
        add_help=False,
    )
    serve.add_argument("arguments", nargs=argparse.REMAINDER)
    serve.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Become the server; returns only if it cannot start."""
    try:
        if importlib.util.find_spec("sglang") is None:
            raise ImportError("No module named 'sglang'")
        gpu = _has_gpu()
    except Exception as error:
        print(f"rheo serve: error: {' '.join(str(error).split())}; see 'rheo doctor'", file=sys.stderr)
        return 2
    command, environment = server_command(arguments.arguments, gpu)
    return os.execve(sys.executable, command, environment)


def server_command(arguments: Sequence[str], gpu: bool) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of the server.

    Parameters
    ----------
    arguments
        SGLang's arguments, as the user gave them.
    gpu
        Whether torch sees one.

    Returns
    -------
    tuple
        The command, with the flags that are not given, and the environment.
    """
    command = [sys.executable, "-m", "sglang.launch_server", *arguments]
    if not _given(arguments, BACKEND_FLAG):
        command += [BACKEND_FLAG, "rheo"]
    environment = dict(os.environ)
    device = _given(arguments, "--device")
    if device == "cpu" or (device is None and not gpu):
        environment.setdefault(CPU_ENGINE, "1")
        command += [] if device else ["--device", "cpu"]
    return command, environment


def _given(arguments: Sequence[str], flag: str) -> str | None:
    """Value of a flag in either of argparse's forms; None if it is not there."""
    for place, argument in enumerate(arguments):
        if argument == flag:
            return arguments[place + 1] if place + 1 < len(arguments) else ""
        if argument.startswith(flag + "="):
            return argument.removeprefix(flag + "=")
    return None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
