"""python -m rheo_sglang.evaluation: the evaluation, where the packages that it needs are installed."""

import sys
from importlib.util import find_spec

NEEDED = ("requests", "tokenizers", "tqdm")
"""What the extra ``eval`` installs."""


def main() -> int:
    """Run the command, or say in one sentence what is missing."""
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        print(
            f"evaluation: {', '.join(missing)} not installed; run pip install 'rheo-sglang[eval]'.",
            file=sys.stderr,
        )
        return 1
    from rheo_sglang.evaluation.command import main as evaluate

    return evaluate()


if __name__ == "__main__":
    raise SystemExit(main())
