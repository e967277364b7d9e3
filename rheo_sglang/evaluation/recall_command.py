"""``rheo eval recall``: recall of facts hidden in long text, by task and length.

    rheo eval recall --url http://HOST:30000 --lengths 8192,30720 --samples 50 --out recall.json
    rheo eval recall --url http://HOST:30000 --compare http://HOST:30001

Any server with OpenAI's ``/v1/chat/completions`` (``/v1/completions`` with ``--no-chat``) will do. The haystack is the
half of Python's own documentation topics that the reference model was not trained on, unless ``--text`` names files.
"""

from collections.abc import Sequence

from rheo_sglang.evaluation.conversation_command import run

LENGTHS, SAMPLES = "4096,8192,16384,30720", 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run("recall", "Recall of facts hidden in long text.", LENGTHS, SAMPLES, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
