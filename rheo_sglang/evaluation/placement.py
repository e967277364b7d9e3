"""Where facts are hidden in a text: on lines of their own, in the middle of sentences, or in rows of a long table."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TABLE_SHARE = 0.125
"""Part of the length that a table of records takes."""
ROW_TOKENS = 24
"""What a row of such a table costs, about; the table's exact size is counted."""
SENTENCE_WORDS = 8
"""A line with as many words can be interrupted."""


@dataclass(frozen=True)
class Placement:
    """Facts that are ready to be put into a text.

    Attributes
    ----------
    added
        Texts that are put into the passage; their tokens count.
    place
        Puts them into the passage's lines.
    """

    added: tuple[str, ...]
    place: Callable[[list[str], random.Random], list[str]]


def in_lines(facts: Sequence[str], length: int, rng: random.Random) -> Placement:
    """Every fact is a line, or lines, of its own."""
    added = tuple(fact + "\n" for fact in facts)

    def place(lines: list[str], rng: random.Random) -> list[str]:
        places = sorted(rng.randint(0, len(lines)) for _ in added)
        pieces = []
        start = 0
        for where, fact in zip(places, added, strict=True):
            pieces += lines[start:where]
            pieces.append(fact)
            start = where
        return pieces + lines[start:]

    return Placement(added, place)


def in_sentences(facts: Sequence[str], length: int, rng: random.Random) -> Placement:
    """Every fact interrupts a sentence of the text, in brackets: neither a line nor a page begins with it."""
    added = tuple(f" ({fact[0].lower()}{fact[1:].removesuffix('.')})" for fact in facts)

    def place(lines: list[str], rng: random.Random) -> list[str]:
        long = [i for i, line in enumerate(lines) if len(line.split()) >= SENTENCE_WORDS]
        places = sorted(rng.choice(long or range(len(lines))) for _ in added)
        pieces = list(lines)
        for where, fact in reversed(list(zip(places, added, strict=True))):
            line = pieces[where]
            spaces = [i for i in range(1, len(line) - 1) if line[i] == " " and line[i - 1].isalnum()]
            at = rng.choice(spaces) if spaces else len(line) - 1
            pieces[where] = line[:at] + fact + line[at:]
        return pieces

    return Placement(added, place)


def in_table(facts: Sequence[str], length: int, rng: random.Random) -> Placement:
    """Every fact is a remark in one row of a long table of records of one kind, which the text never refers to.

    Pages of such a table are alike, and what most of their tokens say is of no use for any question.
    """
    count = max(int(TABLE_SHARE * length / ROW_TOKENS), 2 * len(facts))
    holders = sorted(rng.sample(range(count), len(facts)))
    remarks = {row: fact.removesuffix(".") for row, fact in zip(holders, facts, strict=True)}
    first = rng.randrange(1000, 9000)
    rows = [
        f"| {first + row} | inspected, nothing found | closed | {remarks.get(row, 'no remark')} |\n"
        for row in range(count)
    ]
    table = "".join(["| record | result | state | remark |\n", "|---|---|---|---|\n", *rows])

    def place(lines: list[str], rng: random.Random) -> list[str]:
        where = rng.randint(0, len(lines))
        return [*lines[:where], table, *lines[where:]]

    return Placement((table,), place)


PLACEMENTS: dict[str, Callable[[Sequence[str], int, random.Random], Placement]] = {
    "lines": in_lines,
    "sentences": in_sentences,
    "table": in_table,
}
