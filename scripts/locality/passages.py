"""passages: the real texts that a model reads while its page selections are recorded."""

from __future__ import annotations

from pathlib import Path

from common.austen import load_novels
from common.measurement import REPOSITORY, text_prompts, tokenizer
from locality.statistics import WARM_UP_STEPS
from rheo_sglang.evaluation.haystack import Haystack, token_counter

NOVELS = ("emma", "mansfield_park", "pride_and_prejudice")
TEXTS = (*NOVELS, "language_reference")
HELD_OUT = "persuasion"
QUESTION_SETS = 3
NOVELS_FOLDER = REPOSITORY / ".gpu" / "reference" / "novels"

Passages = dict[str, list[int]]


def passages(model: Path, novels: Path, tokens: int) -> Passages:
    """First tokens of each of `TEXTS`; novels from their first third on.

    Parameters
    ----------
    model
        Checkpoint directory with the tokenizer.
    novels
        Folder of the novels, filled when it holds none.
    tokens
        Tokens of each passage.
    """
    encode = tokenizer(model).encode
    texts = load_novels(novels)
    result = {}
    for name in NOVELS:
        text = texts[name]
        result[name] = encode(text[len(text) // 3 :][: 8 * tokens]).ids[:tokens]
    result[TEXTS[-1]] = text_prompts(model, [tokens])[0]
    return result


def reference_passages(model: Path, novels: Path, tokens: int) -> dict[str, Passages]:
    """A novel that the reference model has not seen, and the questions of its `repeated` task at the end.

    Parameters
    ----------
    model
        Checkpoint directory with the tokenizer.
    novels
        Folder of the novels, filled when it holds none.
    tokens
        Tokens of each passage.

    Returns
    -------
    dict of str to dict
        Passages by name, under ``"text"`` and ``"questions"``.
    """
    encoder = tokenizer(model)
    text = load_novels(novels)[HELD_OUT]
    haystack = Haystack(text, token_counter(encoder))
    questions = {}
    for seed in range(QUESTION_SETS):
        sample = haystack.sample("repeated", tokens + WARM_UP_STEPS, seed)
        asked = "".join(f"{turn.question}{turn.answer}\n" for turn in sample.turns)
        questions[f"questions_{seed}"] = encoder.encode(sample.document + asked).ids[-tokens:]
    running = encoder.encode(text[len(text) // 3 :][: 8 * tokens]).ids[:tokens]
    return {"text": {HELD_OUT: running}, "questions": questions}
