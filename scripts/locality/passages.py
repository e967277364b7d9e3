"""passages: the real texts that a model reads while its page selections are recorded."""

from __future__ import annotations

from pathlib import Path

from austen import load_novels
from measurement import REPOSITORY, text_prompts, tokenizer

NOVELS = ("emma", "mansfield_park", "pride_and_prejudice")
TEXTS = (*NOVELS, "language_reference")
NOVELS_FOLDER = REPOSITORY / ".gpu" / "reference" / "novels"


def passages(model: Path, novels: Path, tokens: int) -> dict[str, list[int]]:
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
