"""sessions: prompts that follow one another, each built on the answers before it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from common.measurement import REPOSITORY, language_reference

PACKAGE = REPOSITORY / "rheo_sglang"
Session = Generator["Turn", str, None]
"""Yields what to ask, is sent the answer."""
Count = Callable[[str], int]
"""Tokens of a text."""

QUESTIONS = (
    "Summarise the first section in three sentences.",
    "Which statements does the text describe, and what does each of them do?",
    "What exceptions are raised, and when?",
    "Give an example that uses what the text explains.",
    "What does the text say about names and scopes?",
    "Which parts would a beginner misunderstand, and why?",
)
TASKS = (
    "Find out how the command line is parsed.",
    "Where are bad settings refused, and with what sentence?",
    "What does the page table know of a page?",
    "How is a request's budget computed?",
    "Which file would you change to add a tiering policy?",
)
FILES = ("cli.py", "errors.py", "page_lists.py", "budget/fixed.py", "tiering/lru.py", "registry.py")
"""Of the package, as an agent's tool prints them; others follow while there is room."""
SYSTEM = (
    "You are a careful programmer. You work on a repository by calling tools. Say in one or two sentences what you "
    "think, then which file you want to read next. Never invent the content of a file."
)
REVIEW = "Review this code: go through it function by function, say what each does and what you would change."
STORY = "Write a long and detailed tutorial about the topics of this text, with many examples."


@dataclass(frozen=True)
class Turn:
    """One request: its prompt, and how many tokens to answer with."""

    prompt: str
    answer_tokens: int


def chat(count: Count, tokens: int) -> Session:
    """Several turns over one document; the history grows by question and answer."""
    history = _say("user", f"Read this text.\n\n{_document(count, tokens)}\n\n{QUESTIONS[0]}")
    for question in [*QUESTIONS[1:], ""]:
        answer = yield Turn(history + _begin("assistant"), 48)
        history += _say("assistant", answer) + _say("user", question)


def questions(count: Count, tokens: int) -> Session:
    """Several questions over one document, each without the ones before it."""
    document = _document(count, tokens)
    for question in QUESTIONS:
        text = f"Read this text.\n\n{document}\n\n{question}"
        yield Turn(_say("user", text) + _begin("assistant"), 48)


def interleaved(count: Count, tokens: int) -> Session:
    """Three chats over passages of their own, of half the tokens each, that take turns."""
    text = language_reference()
    share = tokens // 2
    histories = []
    for number, question in zip(range(3), QUESTIONS, strict=False):
        passage = _first(count, text[number * len(text) // 3 :], share)
        histories.append(_say("user", f"Read this text.\n\n{passage}\n\n{question}"))
    for round_number in range(3):
        for number, history in enumerate(histories):
            answer = yield Turn(history + _begin("assistant"), 48)
            question = QUESTIONS[(number + round_number + 1) % len(QUESTIONS)]
            histories[number] = history + _say("assistant", answer) + _say("user", question)


def agent(count: Count, tokens: int) -> Session:
    """An agent: a system prompt, and between its thoughts a tool's outputs, which are files of this repository."""
    room = tokens // len(FILES)
    others = [name for name in _sources() if name not in FILES]
    history = _say("system", SYSTEM) + _say("user", TASKS[0])
    for turn, name in enumerate(FILES):
        printed = _printed([name, *others[turn :: len(FILES)]])
        history += _say("tool", _first(count, printed, room))
        answer = yield Turn(history + _begin("assistant"), 48)
        history += _say("assistant", answer) + _say("user", TASKS[(turn + 1) % len(TASKS)])


def generation(count: Count, tokens: int) -> Session:
    """One long answer."""
    text = f"{_document(count, tokens)}\n\n{STORY}"
    yield Turn(_say("user", text) + _begin("assistant"), 384)


def review(count: Count, tokens: int) -> Session:
    """One long answer about source code."""
    text = f"{_first(count, _printed(_sources()), tokens)}\n\n{REVIEW}"
    yield Turn(_say("user", text) + _begin("assistant"), 384)


def growth(count: Count, tokens: int) -> Session:
    """A long answer each about an eighth, a quarter, a half and all of a document."""
    for part in (8, 4, 2, 1):
        text = f"{_document(count, tokens // part)}\n\n{STORY}"
        yield Turn(_say("user", text) + _begin("assistant"), 192)


SESSIONS: dict[str, Callable[[Count, int], Session]] = {
    "chat": chat,
    "questions": questions,
    "interleaved": interleaved,
    "agent": agent,
    "generation": generation,
    "review": review,
    "growth": growth,
}


def _document(count: Count, tokens: int) -> str:
    return _first(count, language_reference(), tokens)


def _sources() -> list[str]:
    """Files of the package."""
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def _printed(names: list[str]) -> str:
    """Files as a shell prints them."""
    return "".join(f"$ cat rheo_sglang/{name}\n{(PACKAGE / name).read_text()}" for name in names)


def _first(count: Count, text: str, tokens: int) -> str:
    """The first lines of a text that have at most so many tokens."""
    lines: list[str] = []
    used = 0
    for line in text.splitlines(keepends=True):
        used += count(line)
        if used > tokens:
            break
        lines.append(line)
    return "".join(lines)


def _say(role: str, text: str) -> str:
    return f"{_begin(role)}{text}<|im_end|>\n"


def _begin(role: str) -> str:
    return f"<|im_start|>{role}\n"
