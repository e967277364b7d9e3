"""A process that loads plugins as SGLang's launcher does, parses command lines, and prints what came out.

Reads a JSON list of command lines from the standard input. Prints one JSON object to the standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from typing import Any

from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.mem_cache.registry import registered_radix_cache_backends
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.server_args import ServerArgs

OBSERVED = (
    "attention_backend",
    "page_size",
    "radix_cache_backend",
    "disable_cuda_graph",
    "kv_cache_dtype",
    "max_running_requests",
)


def parse(command_line: list[str]) -> dict[str, Any]:
    """Run one command line up to resolved arguments, or to the exit that SGLang's user would see."""
    os.environ.pop("RHEO_CONFIG", None)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parser = argparse.ArgumentParser()
            ServerArgs.add_cli_args(parser)
            arguments = ServerArgs.from_cli_args(parser.parse_args(command_line))
            if hasattr(arguments, "resolve_once"):
                arguments.resolve_once()
    except SystemExit as exit_:
        return {"exit": exit_.code, "stderr": errors.getvalue()}
    except Exception as error:
        return {"raised": type(error).__name__, "stderr": str(error)}
    return {
        "values": {name: getattr(arguments, name) for name in OBSERVED},
        "config": os.environ.get("RHEO_CONFIG"),
    }


def main() -> None:
    """Load, parse and print."""
    command_lines = json.load(sys.stdin)
    untouched = parse(command_lines[0])
    for _ in range(2):
        load_plugins()
    hooks = {target: len(entries) for target, entries in HookRegistry._hooks.items()}
    json.dump(
        {
            "without_plugin": untouched,
            "attention_backends": sorted(ATTENTION_BACKENDS),
            "radix_cache_backends": registered_radix_cache_backends(),
            "hooks": hooks,
            "unpatched": sorted(set(hooks) - HookRegistry._patched),
            "parsed": [parse(command_line) for command_line in command_lines],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
