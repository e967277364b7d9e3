"""agent_sessions: what agents ask, turn by turn: a long first prompt, then outputs of a tool, which are real files."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = dict[str, str]
Turns = list[list[Message]]
"""The new messages of each turn; between two turns is the model's answer."""
Encode = Callable[[str], Any]
"""A tokenizer's ``encode``, whose result has ``ids`` and ``offsets``."""

SYSTEM = (
    "You are a careful programmer. You work on a repository by calling tools. Say in one or two sentences what you "
    "think, then which file you want to read next. Never invent the content of a file."
)
TASK = "Find out which of these files handle errors badly, and how you would change them. This is what I read so far."
TOOL = "Output of the tool:"


@dataclass(frozen=True)
class AgentLoad:
    """How long sessions are, in tokens.

    Attributes
    ----------
    turns
        Requests of a session.
    first
        Tokens of the first prompt.
    tool
        Tokens that a tool puts out between two turns.
    answer
        Tokens of each answer.
    """

    turns: int
    first: int
    tool: int
    answer: int

    @property
    def longest(self) -> int:
        """Tokens of a session with its last answer, without what the messages' frames take."""
        return self.first + (self.turns - 1) * self.tool + self.turns * self.answer

    def sessions(self, pool_tokens: int, times: float) -> int:
        """How many sessions have ``times`` the tokens of a pool, at least two."""
        return max(-(-int(times * pool_tokens) // self.longest), 2)


class Files:
    """Python's own sources, one after the other from some place on, as a tool prints them; they go round.

    Parameters
    ----------
    encode
        Of the model's tokenizer.
    start
        Where to begin, between 0 and 1.
    """

    def __init__(self, encode: Encode, start: float) -> None:
        self.encode = encode
        self.paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        self.next = int(start * len(self.paths))
        self.rest = ""

    def take(self, tokens: int) -> str:
        """The next ``tokens`` tokens of text; a file that does not fit goes on in what is taken next."""
        parts: list[str] = []
        while tokens > 0:
            text = self.rest or self._file()
            encoded = self.encode(text)
            end = encoded.offsets[tokens - 1][1] if len(encoded.ids) > tokens else len(text)
            parts.append(text[:end])
            self.rest = text[end:]
            tokens -= len(encoded.ids)
        return "".join(parts)

    def _file(self) -> str:
        path = self.paths[self.next % len(self.paths)]
        self.next += 1
        return f"$ cat lib/{path.name}\n{path.read_text(errors='replace')}\n"


def agent_session(encode: Encode, load: AgentLoad, start: float) -> Turns:
    """One session whose files begin at ``start``, between 0 and 1; only its system prompt is that of others."""
    files = Files(encode, start)
    frame = len(encode(SYSTEM).ids) + len(encode(TASK).ids)
    first = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{TASK}\n\n{files.take(load.first - frame)}"},
    ]
    frame = len(encode(TOOL).ids)
    later = [
        [{"role": "user", "content": f"{TOOL}\n{files.take(load.tool - frame)}"}]
        for _ in range(load.turns - 1)
    ]
    return [first, *later]


def agent_sessions(encode: Encode, load: AgentLoad, count: int) -> list[Turns]:
    """Sessions that begin at different files."""
    return [agent_session(encode, load, number / count) for number in range(count)]


def as_text(messages: Sequence[Message]) -> str:
    """Messages in the ChatML form, up to where the model's answer begins."""
    said = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)
    return f"{said}<|im_start|>assistant\n"


AFTER_ANSWER = "<|im_end|>\n"
"""What follows an answer in the ChatML form, before the next message."""


def write_trace(sessions: Sequence[Turns], load: AgentLoad, path: Path) -> None:
    """Write sessions as SGLang's ``bench_serving --dataset-name agentic-trace`` reads them."""
    conversations = [
        [
            {"messages": messages, "prompt_tokens": load.first + number * (load.tool + load.answer)}
            for number, messages in enumerate(turns)
        ]
        for turns in sessions
    ]
    path.write_text(json.dumps({"metadata": {"turns": load.turns}, "conversations": conversations}))
