"""Real texts as token ids: passages of four kinds, and an agent's session that ends in a quotation of itself."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.measurement import tokenizer
from rheo_sglang.evaluation.texts import CHARACTERS_PER_TOKEN, KINDS, passage

TEXTS = (*KINDS, "quotation")


def texts(model: Path, kinds: list[str], tokens: int, steps: int) -> Iterator[tuple[str, list[int]]]:
    """Names and token ids of texts of `TEXTS`, ``tokens + steps`` tokens each, always the same ones."""
    encoder = tokenizer(model)
    for kind in kinds:
        if kind == "quotation":
            yield kind, quotation(encoder, tokens, steps, 0)
        else:
            text = passage(kind, CHARACTERS_PER_TOKEN * (tokens + steps), 0)
            yield kind, encoder.encode(text).ids[: tokens + steps]


def quotation(encoder: Any, length: int, steps: int, seed: int) -> list[int]:
    """``length`` tokens of a session that end in a request to quote a passage, and ``steps`` tokens of that passage."""
    rng = random.Random(f"session {seed}")

    def encode(text: str) -> list[int]:
        return encoder.encode(text, add_special_tokens=False).ids

    files = [path for path in sorted(Path(os.__file__).parent.glob("*.py")) if path.stat().st_size > 4000]
    pieces = [f"# {path.name}\n{path.read_text(errors='replace')}\n" for path in files]
    rng.shuffle(pieces)
    ids: list[int] = []
    while len(ids) < length:
        begin, end = encode("\nuser: <tool_response>\n"), encode("\n</tool_response>\nassistant: Next.\n")
        ids += begin + encode(pieces.pop())[:1200] + end
    at = rng.randrange(length // 3, 2 * length // 3)
    first = encoder.decode(ids[at - 24 : at])
    ask = encode(f"\nuser: Quote the passage above that begins with:\n{first}\nassistant: It says:\n{first}")
    return ids[: length - len(ask)] + ask + ids[at : at + steps]
