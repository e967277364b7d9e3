"""Conversations with known answers: what is asked, how a reply is scored, and their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rheo_sglang.evaluation.prompt_files import read_lines, write_lines


@dataclass(frozen=True)
class Question:
    """One turn.

    Attributes
    ----------
    text
        What the user says.
    prefix
        First words of the answer, which the model continues.
    max_tokens
        Most tokens of the reply.
    expected
        Items that the reply must contain.
    answer
        The reply word for word, where that can be expected, else empty.
    """

    text: str
    prefix: str
    max_tokens: int
    expected: tuple[str, ...]
    answer: str = ""


@dataclass(frozen=True)
class Conversation:
    """Questions about one document.

    Attributes
    ----------
    task, length, seed
        What it was made by; length in tokens, everything included.
    document
        Comes before the first question.
    questions
        In the order in which they are asked.
    stop
        Texts that end a reply.
    """

    task: str
    length: int
    seed: int
    document: str
    questions: tuple[Question, ...]
    stop: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Names it among those of its suite."""
        return f"{self.task}/{self.length}/{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """As plain data; `from_json` takes it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Conversation:
        """From what `to_json` gave, tuples being lists in JSON."""
        questions = tuple(
            Question(**{**question, "expected": tuple(question["expected"])})
            for question in data["questions"]
        )
        return cls(**{**data, "questions": questions, "stop": tuple(data["stop"])})


@dataclass(frozen=True)
class ConversationSet:
    """Conversations of one suite.

    Attributes
    ----------
    suite
        A key of `SCORES`.
    chat
        Whether they are sent as messages, which the server puts into the model's chat format, or as plain text.
    conversations
        In the order in which they are asked.
    """

    suite: str
    chat: bool
    conversations: list[Conversation]

    def first(self, samples: int) -> ConversationSet:
        """Of every task and length those with the smallest seeds."""
        groups: dict[tuple[str, int], list[Conversation]] = {}
        for one in self.conversations:
            groups.setdefault((one.task, one.length), []).append(one)
        chosen = {
            one.key for group in groups.values() for one in sorted(group, key=lambda c: c.seed)[:samples]
        }
        kept = [one for one in self.conversations if one.key in chosen]
        return ConversationSet(self.suite, self.chat, kept)

    def up_to(self, longest: int) -> ConversationSet:
        """Those of at most so many tokens."""
        kept = [one for one in self.conversations if one.length <= longest]
        return ConversationSet(self.suite, self.chat, kept)

    def save(self, path: Path, **about: Any) -> None:
        """Write a file of prompts; ``about`` says more of how they were made."""
        header = {"suite": self.suite, "chat": self.chat, **about}
        write_lines(path, header, (one.to_json() for one in self.conversations))

    @classmethod
    def load(cls, path: Path, suite: str) -> ConversationSet:
        """Read what `save` wrote."""
        header, records = read_lines(path, suite)
        return cls(suite, header["chat"], [Conversation.from_json(record) for record in records])


def whole_words(expected: Sequence[str], reply: str) -> float:
    """Share of the expected items that a reply contains as whole words, in [0, 1]."""
    words = set(re.findall(r"\w+", reply))
    return sum(item in words for item in expected) / len(expected)


def substrings(expected: Sequence[str], reply: str) -> float:
    """Share of the expected items that are anywhere in a reply, whatever their case: RULER's ``string_match_all``."""
    return sum(item.lower() in reply.lower() for item in expected) / len(expected)


SCORES: dict[str, Callable[[Sequence[str], str], float]] = {"recall": whole_words, "ruler": substrings}
