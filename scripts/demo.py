#!/usr/bin/env python3
"""Runs the demonstration from nothing: environment, model, server, conversation, cache report.

    python3 scripts/demo.py

This launcher needs only the standard library. It creates the environment of the newest supported SGLang
where it is missing and continues inside it.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from environment.create import DEFAULT_SGLANG, EnvironmentCreationError, default_path, ensure_environment

INTERRUPTED = 130


def parse_arguments() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--port", type=int, help="TCP port on 127.0.0.1 (default: a free one)")
    parser.add_argument(
        "--model", type=Path, help="checkpoint directory (default: SmolLM2-135M-Instruct, converted)"
    )
    parser.add_argument(
        "--rheo-config", metavar="JSON_OR_FILE", help="settings of the backend (default: see README)"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=3000, help="length of the prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="longest answer (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.port is not None and not 0 < arguments.port < 65536:
        parser.error(f"--port {arguments.port} is no TCP port; choose 1 to 65535.")
    if arguments.model is not None and not (arguments.model / "config.json").is_file():
        parser.error(
            f"--model {arguments.model} holds no config.json; name a Hugging Face checkpoint directory."
        )
    if arguments.prompt_tokens < 200:
        parser.error(f"--prompt-tokens {arguments.prompt_tokens} is too short; choose at least 200.")
    if arguments.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {arguments.max_new_tokens} generates nothing; choose at least 1.")
    return arguments


def main() -> None:
    """Enter the environment and run the demonstration."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    arguments = parse_arguments()
    try:
        if Path(sys.prefix).resolve() != default_path(DEFAULT_SGLANG).resolve():
            python = str(ensure_environment(DEFAULT_SGLANG))
            os.execv(python, [python, str(Path(__file__).resolve()), *sys.argv[1:]])
        from demonstration.conversation import demonstrate

        demonstrate(arguments)
    except EnvironmentCreationError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
