"""translate: CUDA C++ with inline PTX to C++ that calls a function for every PTX statement."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

ASM = re.compile(r"\basm(\s+volatile)?\s*\(")
DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?(?P<type>[\w ]+?)\s+(?P<name>\w+)\[\];"
)
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
INSTRUCTION = re.compile(r"^\s*(?P<name>[a-z][\w.:]*)\s*(?=[\s;])", re.MULTILINE)
OPERAND = re.compile(r'^\s*"[=+]?\w"\s*\((?P<expression>.*)\)\s*$', re.DOTALL)


def translate(source: str) -> str:
    """Replace inline PTX and dynamic shared memory.

    Parameters
    ----------
    source
        Preprocessed CUDA C++.

    Raises
    ------
    ValueError
        If a PTX statement has no instruction, or operands in no form known here.
    """
    source = DYNAMIC_SHARED.sub(r"\g<type>* const \g<name> = simt::dynamic_shared();", source)
    pieces, end = [], 0
    while found := ASM.search(source, end):
        pieces.append(source[end : found.start()])
        end = _closing(source, found.end()) + 1
        pieces.append(_call(source[found.end() : end - 1]))
    return "".join((*pieces, source[end:]))


def _call(statement: str) -> str:
    template, *operands = _split(statement, ":")
    text = "".join(literal.encode().decode("unicode_escape") for literal in LITERAL.findall(template))
    names = [name for name in INSTRUCTION.findall(text) if not text.startswith(f"{name}:")]
    if not names:
        raise ValueError(f"no instruction in the PTX statement {statement!r}")
    expressions = []
    for operand in (each for kind in operands[:2] for each in _split(kind, ",") if each.strip()):
        matched = OPERAND.match(operand)
        if matched is None:
            raise ValueError(f"no operand: {operand!r} in the PTX statement {statement!r}")
        expressions.append(matched["expression"])
    return f"ptx::{re.sub('[.:]+', '_', names[0])}({', '.join(expressions)})"


def _split(text: str, separator: str) -> list[str]:
    """Parts of a text between separators outside of strings and brackets; ``::`` separates twice."""
    cuts = [place for place, character, depth in _plain(text) if character == separator and depth == 0]
    return [text[begin + 1 : end] for begin, end in pairwise((-1, *cuts, len(text)))]


def _closing(text: str, begin: int) -> int:
    """Place of the bracket that closes one that was opened before ``begin``."""
    return next(
        begin + place for place, character, depth in _plain(text[begin:]) if character == ")" and depth < 0
    )


def _plain(text: str) -> Iterator[tuple[int, str, int]]:
    """Every character outside of strings, its place, and how many brackets are open behind it."""
    depth, place = 0, 0
    while place < len(text):
        if literal := LITERAL.match(text, place):
            place = literal.end()
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[place], 0)
        yield place, text[place], depth
        place += 1
