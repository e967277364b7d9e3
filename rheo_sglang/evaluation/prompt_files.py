"""Prompts in files: JSON lines, compressed, so that they can be made where texts are and sent where the server is."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def open_text(path: Path, mode: str) -> TextIO:
    """Open a text file, compressed as its name's end says: ``.gz``, ``.xz`` (much smaller), or not at all."""
    opener: Any = OPENERS.get(path.suffix, open)
    return opener(path, mode + "t", encoding="utf-8")


def write_lines(path: Path, header: dict[str, Any], records: Iterable[dict[str, Any]]) -> None:
    """Write a header and one line for each record; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_text(path, "w") as file:
        for record in (header, *records):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_lines(path: Path, suite: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and records of a file that `write_lines` wrote.

    Raises
    ------
    ValueError
        If it holds prompts of another suite, or none.
    """
    with open_text(path, "r") as file:
        header, *records = [json.loads(line) for line in file]
    if header.get("suite") != suite:
        raise ValueError(f"{path} holds prompts of {header.get('suite')!r}, not of {suite!r}")
    return header, records


def digest(records: Iterable[dict[str, Any]]) -> str:
    """Names a set of prompts, so that results say what they are of."""
    state = hashlib.sha256()
    for record in records:
        state.update(json.dumps(record, sort_keys=True).encode())
    return state.hexdigest()[:16]
