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
NEEDED_FOR_RULER = {"lm_eval": "lm-eval", "nltk": "nltk", "wonderwords": "wonderwords"}
"""What the extra ``ruler`` adds."""
TO_SEND = ("requests", "tqdm")
"""What prompts from files need; SGLang brings it."""
COMMANDS = {
    "compare": "everything below for a server beside a dense one, in one table",
    "divergence": "how far a server's next tokens are from dense attention's, over real text",
    "recall": "recall of facts in long prompts, by task and length",
    "ruler": "RULER's tasks, by task and length",
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
    if sentence := missing(options.command, options.arguments):
        print(f"rheo eval: {sentence}", file=sys.stderr)
        return 1
    command = import_module(f"rheo_sglang.evaluation.{options.command}_command")
    return command.main(options.arguments)


def missing(command: str, arguments: Sequence[str]) -> str:
    """One sentence about packages that are not installed; empty where all are there."""
    from_file = any(one.split("=")[0] == "--prompts" for one in arguments)
    sends_alone = from_file or not {"-h", "--help"}.isdisjoint(arguments)
    wanted = {package: NEEDED[package] for package in TO_SEND} if sends_alone else dict(NEEDED)
    extra = "eval"
    if not sends_alone and (command == "ruler" or any("ruler" in one for one in arguments)):
        wanted, extra = wanted | NEEDED_FOR_RULER, "eval,ruler"
    names = [name for package, name in wanted.items() if find_spec(package) is None]
    return (
        f"{', '.join(names)} not installed; run pip install '.[{extra}]' in the repository." if names else ""
    )


if __name__ == "__main__":
    raise SystemExit(main())
