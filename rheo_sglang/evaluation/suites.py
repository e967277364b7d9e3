"""The suites of conversations: which tasks they have, and how their prompts are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from rheo_sglang.evaluation.checkpoint_tokenizer import has_chat_template, load_tokenizer
from rheo_sglang.evaluation.conversations import Conversation, ConversationSet
from rheo_sglang.evaluation.haystack import Haystack, documentation_text, token_counter
from rheo_sglang.evaluation.recall_tasks import RECALL_TASKS, make_conversation
from rheo_sglang.evaluation.ruler import REPLY_TOKENS, RulerGenerators

CountTokens = Callable[[Sequence[str]], list[int]]
Generate = Callable[[str, int, int, int], list[Conversation]]


@dataclass(frozen=True)
class Request:
    """What prompts to make.

    Attributes
    ----------
    tasks, lengths
        Every task at every length.
    samples, seed
        Of each; the seed of the first.
    tokenizer
        Checkpoint folder or hub name.
    chat
        Whether for a chat format; None: where the tokenizer has a template.
    text
        Files to use as the haystack; none: documentation that Python brings.
    """

    tasks: list[str]
    lengths: list[int]
    samples: int
    seed: int
    tokenizer: str
    chat: bool | None = None
    text: tuple[Path, ...] = ()


def make_set(suite: str, request: Request) -> ConversationSet:
    """Make a suite's conversations, with progress.

    Raises
    ------
    ValueError
        When a task is unknown, a length does not fit, or there is no tokenizer.
    ImportError
        When a package that generators need is missing.
    """
    known = TASKS_OF[suite]
    if unknown := [task for task in request.tasks if task not in known]:
        raise ValueError(f"--tasks: {unknown[0]} is not one of {', '.join(known)}")
    chat = has_chat_template(request.tokenizer) if request.chat is None else request.chat
    count = token_counter(load_tokenizer(request.tokenizer))
    text = "\n".join(path.read_text(encoding="utf-8") for path in request.text)
    generate = (recall_prompts if suite == "recall" else ruler_prompts)(count, text, chat)
    made: list[Conversation] = []
    total = len(request.lengths) * len(request.tasks) * request.samples
    with tqdm(total=total, desc=f"{suite} prompts", unit="prompt") as bar:
        for length in request.lengths:
            for task in request.tasks:
                made += generate(task, length, request.samples, request.seed)
                bar.update(request.samples)
    return ConversationSet(suite, chat, made)


def recall_prompts(count: CountTokens, text: str, chat: bool) -> Generate:
    """Prompts of recall; the haystack is the half of the documentation that the reference model has not seen."""
    haystack = Haystack(text or documentation_text(held_out=True), count)

    def generate(task: str, length: int, samples: int, seed: int) -> list[Conversation]:
        return [
            make_conversation(haystack, count, task, length, one, chat) for one in range(seed, seed + samples)
        ]

    return generate


def ruler_prompts(count: CountTokens, text: str, chat: bool) -> Generate:
    """Prompts of RULER; all of the documentation stands for its essays."""
    essays = text or "\n\n".join(documentation_text(held_out=half) for half in (False, True))
    return RulerGenerators(count, essays).conversations


TASKS_OF: dict[str, tuple[str, ...]] = {"recall": tuple(RECALL_TASKS), "ruler": tuple(REPLY_TOKENS)}
