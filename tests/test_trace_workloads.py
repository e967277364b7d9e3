"""Sessions that are traced: the server that they need, and where they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from studies.trace_workloads import arguments, hold
from workloads.sessions import SESSIONS


def words(text: str) -> int:
    return len(text.split())


class Parrot:
    """Answers every prompt with as many words as it may, which are its tokens."""

    def generate(self, prompt: str, most: int, **_: Any) -> dict[str, Any]:
        meta = {"prompt_tokens": words(prompt)}
        return {"text": "x " * most, "output_ids": [1] * most, "meta_info": meta}


def held(name: str, tokens: int, most: int | None = None) -> list[dict[str, Any]]:
    return hold(Parrot(), name, SESSIONS[name](words, tokens), most)  # type: ignore[arg-type]


def answers(name: str, most: int | None = None) -> list[int]:
    return [len(one["answer"]) for one in held(name, 64, most)]


@pytest.mark.parametrize("name", SESSIONS)
def test_the_context_is_long_enough_for_every_request_of_a_session(name: str, tmp_path: Path) -> None:
    server = arguments(32, 8192, "float32", tmp_path)
    context = int(server[server.index("--context-length") + 1])
    assert max(one["prompt_tokens"] + len(one["answer"]) for one in held(name, 8192)) <= context


def test_a_session_ends_with_its_last_turn_or_with_the_tokens_that_its_answers_may_have() -> None:
    assert answers("questions") == [48] * 6
    assert answers("questions", 96) == [48] * 2
    assert answers("questions", 100) == [48, 48, 4]
    assert answers("generation", 96) == [96]
