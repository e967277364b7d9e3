"""rheo eval, also python -m rheo_sglang.evaluation: the evaluation, where the packages that it needs are installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

NEEDED = {
    "chatterbot_corpus": "chatterbot-corpus",
    "requests": "requests",
    "tokenizers": "tokenizers",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}
"""What the extra ``eval`` installs: packages as they are imported, and as they are installed."""
COMMANDS = {
    "recall": "recall of facts in long prompts, by task and length",
    "divergence": "how far a server's next tokens are from dense attention's, over real text",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, or say in one sentence what is missing."""
    parser = argparse.ArgumentParser(
        prog="rheo eval",
        description="Measures the answers of a served model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items()),
    )
    parser.add_argument("command", choices=COMMANDS, help="what to measure; COMMAND --help lists its options")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the command")
    options = parser.parse_args(arguments)
    missing = [name for package, name in NEEDED.items() if find_spec(package) is None]
    if missing:
        print(
            f"rheo eval: {', '.join(missing)} not installed; run pip install '.[eval]' in the repository.",
            file=sys.stderr,
        )
        return 1
    command = import_module(f"rheo_sglang.evaluation.{options.command}_command")
    return command.main(options.arguments)


if __name__ == "__main__":
    raise SystemExit(main())
