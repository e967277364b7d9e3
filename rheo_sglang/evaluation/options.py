"""options: values of the evaluation's command lines, refused in one sentence before anything is asked or made."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path


def positive(text: str) -> int:
    """A number of things, 1 or more."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not supported; allowed: 1 or more")
    return value


def lengths(text: str) -> list[int]:
    """Numbers of tokens, separated by commas."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not supported; allowed: numbers of tokens, as in 4096,8192"
        )
    return [int(part) for part in parts]


def existing(text: str) -> Path:
    """A file or folder that is there."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return path


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """What reads names that commas separate, each one of those that are known."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := sorted(set(found) - set(known)):
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return found

    return names
