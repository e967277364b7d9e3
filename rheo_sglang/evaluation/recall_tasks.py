"""What ``rheo eval recall`` asks: the task families, two harder places to hide a fact in, and chat questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from rheo_sglang.evaluation.conversations import Conversation, Question
from rheo_sglang.evaluation.haystack import Haystack
from rheo_sglang.evaluation.names import NamePool
from rheo_sglang.evaluation.tasks import TASKS, Exercise, Turn, multikey

HIDDEN_KEYS = 4
RECALL_TASKS: dict[str, tuple[Callable[[random.Random, NamePool], Exercise], str]] = {
    **{name: (task, "lines") for name, task in TASKS.items()},
    "embedded": (partial(multikey, keys=HIDDEN_KEYS, task="embedded"), "sentences"),
    "buried": (partial(multikey, keys=HIDDEN_KEYS, task="buried"), "table"),
}
"""Exercises and where their facts are hidden: `embedded` mid-sentence, `buried` where pages are of no importance."""
INSTRUCTION = "Answer in one full sentence."
"""So that a reply begins with other words: its very first token comes from the prefill, whose attention is dense."""
INSTRUCTION_FOR_ALL = f"There are several: name them all. {INSTRUCTION}"
PREFACE = "Read this text. Questions about it follow.\n\n"
CHAT_ROOM = 96
"""Tokens kept free for a chat format around a conversation, and the preface."""
FREE_WORDS = 32
"""Tokens that a chat reply may take beyond the answer and its first words."""


def make_conversation(
    haystack: Haystack,
    count_tokens: Callable[[Sequence[str]], list[int]],
    task: str,
    length: int,
    seed: int,
    chat: bool,
) -> Conversation:
    """One conversation of a task.

    Parameters
    ----------
    haystack
        Text to hide facts in.
    count_tokens
        Sizes of texts, in tokens.
    task
        A key of `RECALL_TASKS`.
    length
        Most tokens of the conversation, replies and, in chat, the format included.
    seed
        The same arguments give the same conversation.
    chat
        Questions as a user asks them, with no word of the answer given, so that all of it is decoded; else the answer's
        first words are part of the prompt.

    Raises
    ------
    ValueError
        When the task does not fit.
    """
    make, placement = RECALL_TASKS[task]
    rng = random.Random(f"{task} {length} {seed}")
    exercise = make(rng, NamePool(rng))
    turns = len(exercise.turns)
    extra = sum(count_tokens([INSTRUCTION_FOR_ALL])) + FREE_WORDS + CHAT_ROOM // 4
    room = CHAT_ROOM + turns * extra if chat else 0
    sample = haystack.hide(exercise, length - room, rng, placement)
    make_question = chat_question if chat else plain_question
    questions = tuple(make_question(turn, count_tokens) for turn in sample.turns)
    if chat:
        return Conversation(task, length, seed, f"{PREFACE}{sample.document}\n", questions)
    return Conversation(task, length, seed, sample.document, questions, ("\n",))


def plain_question(turn: Turn, count_tokens: Callable[[Sequence[str]], list[int]]) -> Question:
    """A turn for a model that continues text."""
    asked, begun = turn.question.split("\n", 1)
    (size,) = count_tokens([turn.answer])
    return Question(asked, begun, size + 8, turn.expected, turn.answer)


def chat_question(turn: Turn, count_tokens: Callable[[Sequence[str]], list[int]]) -> Question:
    """A turn for a model that answers questions."""
    asked, begun = turn.question.split("\n", 1)
    (size,) = count_tokens([begun + turn.answer])
    instruction = INSTRUCTION_FOR_ALL if len(turn.expected) > 1 else INSTRUCTION
    return Question(f"{asked} {instruction}", "", size + FREE_WORDS, turn.expected)
