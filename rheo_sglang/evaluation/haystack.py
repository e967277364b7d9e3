"""Real text as a haystack: cut to a token count, with an exercise's facts hidden in it."""

from __future__ import annotations

import random
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from rheo_sglang.evaluation.names import NamePool
from rheo_sglang.evaluation.placement import PLACEMENTS
from rheo_sglang.evaluation.tasks import TASKS, Exercise, Turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Sample:
    """One conversation over one document.

    Attributes
    ----------
    task
        Name of the task family.
    document
        Text with the facts in it, ending in a line break.
    turns
        Questions in the order in which they are asked.
    """

    task: str
    document: str
    turns: tuple[Turn, ...]


def documentation_text(held_out: bool) -> str:
    """Python's language reference from the standard library, split once and for all by topic name.

    Parameters
    ----------
    held_out
        True for the half that the reference model was not trained on, False for the other.

    Returns
    -------
    str
        The topics, in name order. Every topic belongs to one half, whatever the Python version; paragraphs that
        topics of both halves quote are left out of the held-out half.
    """
    from pydoc_data.topics import topics

    halves: tuple[list[str], list[str]] = ([], [])
    for name in sorted(topics):
        halves[zlib.crc32(name.encode()) % 2].append(topics[name])
    trained, other = ("\n\n".join(half).split("\n\n") for half in halves)
    if not held_out:
        return "\n\n".join(trained)
    seen = set(trained)
    return "\n\n".join(paragraph for paragraph in other if paragraph not in seen)


def token_counter(tokenizer: Tokenizer) -> Callable[[Sequence[str]], list[int]]:
    """A function that measures texts in a tokenizer's tokens, without the tokens it puts around a text."""

    def count_tokens(texts: Sequence[str]) -> list[int]:
        return [
            len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    return count_tokens


class Haystack:
    """Lines of text with their sizes in tokens.

    Parameters
    ----------
    text
        Text to cut passages from.
    count_tokens
        Sizes in tokens of a list of texts. Sizes are added up, so a document's size is exact for tokenizers
        that treat lines apart and near for others.

    Raises
    ------
    ValueError
        When the text is empty.
    """

    def __init__(self, text: str, count_tokens: Callable[[Sequence[str]], list[int]]) -> None:
        self.lines = [line + "\n" for line in text.splitlines()]
        if not self.lines:
            raise ValueError("the haystack text is empty; at least one line is needed")
        self._count_tokens = count_tokens
        self._ends = list(accumulate(count_tokens(self.lines)))

    @property
    def tokens(self) -> int:
        """Size of the whole text in tokens."""
        return self._ends[-1]

    def passage(self, tokens: int, rng: random.Random) -> list[str]:
        """Consecutive lines from a random place, of at most `tokens` tokens.

        For passages longer than the text, whole copies of it come first.
        """
        if tokens > self.tokens:
            return self.lines + self.passage(tokens - self.tokens, rng)
        last_start = bisect_right(self._ends, self.tokens - tokens)
        start = rng.randrange(last_start) if last_start else 0
        before = self._ends[start - 1] if start else 0
        return self.lines[start : bisect_right(self._ends, before + tokens)]

    def hide(self, exercise: Exercise, length: int, rng: random.Random, placement: str = "lines") -> Sample:
        """Hide an exercise's facts in a passage, so that the whole conversation has at most `length` tokens.

        Parameters
        ----------
        exercise
            Facts and turns; their tokens, answers included, count towards the length.
        length
            Tokens of document, questions and answers together.
        rng
            Source of the passage and of the places of the facts.
        placement
            Where the facts are: a key of `rheo_sglang.evaluation.placement.PLACEMENTS`.

        Raises
        ------
        ValueError
            When the exercise alone is longer.
        """
        chosen = PLACEMENTS[placement](exercise.facts, length, rng)
        conversation = [f"{turn.question}{turn.answer}\n" for turn in exercise.turns]
        needed = sum(self._count_tokens([*chosen.added, *conversation])) + 1
        if needed > length:
            raise ValueError(f"task {exercise.task} does not fit in {length} tokens; it needs {needed}")
        lines = self.passage(length - needed, rng)
        return Sample(exercise.task, "".join(chosen.place(lines, rng)), exercise.turns)

    def sample(self, task: str, length: int, seed: int) -> Sample:
        """Draw one sample of a task.

        Parameters
        ----------
        task
            A key of `TASKS`; its facts are lines of their own.
        length
            Tokens of the whole conversation.
        seed
            The same task, length and seed give the same sample.
        """
        rng = random.Random(f"{task} {length} {seed}")
        return self.hide(TASKS[task](rng, NamePool(rng)), length, rng)
