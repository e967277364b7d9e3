"""Late answers: facts of a long text that nothing asks for until hundreds of tokens have been decoded."""

from __future__ import annotations

import random

from rheo_sglang.evaluation.checkpoint_tokenizer import load_tokenizer
from rheo_sglang.evaluation.divergence import Prompt
from rheo_sglang.evaluation.haystack import Haystack, documentation_text, token_counter
from rheo_sglang.evaluation.names import NamePool
from rheo_sglang.evaluation.recall_tasks import HIDDEN_KEYS
from rheo_sglang.evaluation.tasks import multikey

PLACEMENTS = ("lines", "table")
"""Where facts are hidden, by turns: as lines of their own, or as remarks in a table that nothing refers to."""
BEFORE = 200
"""Tokens that are decoded before a fact is asked for, at least."""


def late_prompts(tokenizer: str, lengths: list[int], samples: int, seed: int) -> list[Prompt]:
    """Texts that hide access codes, continued by other text and then by a sentence that ends in one of the codes.

    Parameters
    ----------
    tokenizer
        Checkpoint folder or hub name.
    lengths
        Tokens of the texts.
    samples
        Texts of every length.
    seed
        Of the first.

    Raises
    ------
    ValueError
        If facts do not fit into a length.
    """
    encoder = load_tokenizer(tokenizer)
    haystack = Haystack(documentation_text(held_out=True), token_counter(encoder))

    def encode(text: str) -> list[int]:
        return list(encoder.encode(text, add_special_tokens=False).ids)

    prompts = []
    for length in lengths:
        for one in range(seed, seed + samples):
            rng = random.Random(f"late {length} {one}")
            exercise = multikey(rng, NamePool(rng), keys=HIDDEN_KEYS, task="late")
            sample = haystack.hide(exercise, length, rng, PLACEMENTS[one % len(PLACEMENTS)])
            (turn,) = sample.turns
            lead = turn.question.split("\n", 1)[1].removeprefix("Answer: ")
            between = "".join(haystack.passage(BEFORE + BEFORE // 4, rng))
            answer = encode(turn.answer.removesuffix("."))
            forced = [*encode(f"{between}\n{lead}"), *answer]
            prompts.append(Prompt("late", one, encode(sample.document), forced, len(answer)))
    return prompts
