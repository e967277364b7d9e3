"""Real text of four kinds, drawn by a seed: source code, documentation, dialogue, an agent's session.

Everything comes from installed packages, so that no network is needed; the same Python and package versions give the
same text, and results carry a digest of it.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

CHARACTERS_PER_TOKEN = 8
"""More than any tokenizer packs into a token of such text, on average: how much text is offered to be cut."""


@cache
def source_files() -> list[Path]:
    """Python's standard library, test code left out, in name order."""
    library = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__"}
    return sorted(
        path for path in library.rglob("*.py") if not skipped & set(path.relative_to(library).parts)
    )


def _name(path: Path) -> str:
    return str(path.relative_to(sysconfig.get_path("stdlib")))


def code(rng: random.Random) -> Iterator[str]:
    """Whole source files, one after another, each behind a line with its name."""
    for path in rng.sample(source_files(), len(source_files())):
        yield f"# file: {_name(path)}\n{path.read_text(errors='replace')}\n"


def documentation(rng: random.Random) -> Iterator[str]:
    """Topics of Python's language reference, mixed with docstrings of its modules and classes."""
    from pydoc_data.topics import topics

    names = rng.sample(sorted(topics), len(topics))
    for name, path in zip(names, rng.sample(source_files(), len(names)), strict=False):
        yield f"{topics[name].strip()}\n\n"
        yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(errors="replace"))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 200:
                name = _name(path) if isinstance(node, ast.Module) else node.name
                yield f"{name}\n{'-' * len(name)}\n\n{text}\n\n"


@cache
def _conversations() -> list[list[str]]:
    """Conversations of the package chatterbot-corpus (BSD), English, as lists of utterances."""
    import chatterbot_corpus
    import yaml

    folder = Path(chatterbot_corpus.__file__).parent / "data" / "english"
    found = []
    for path in sorted(folder.glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            found.append([" ".join(str(turn).split()) for turn in turns])
    return found


def dialogue(rng: random.Random) -> Iterator[str]:
    """Conversations between two people, a line an utterance."""
    for turns in rng.sample(_conversations(), len(_conversations())):
        speakers = rng.sample(("Alex", "Sam", "Robin", "Kim", "Chris", "Jo"), 2)
        yield "".join(f"{speakers[i % 2]}: {turn}\n" for i, turn in enumerate(turns)) + "\n"


def agent(rng: random.Random) -> Iterator[str]:
    """A coding agent's session over the standard library: its calls, and what the tools really answer."""
    yield "You are a coding agent. You read files with the tools list_files, search and read_file.\n\n"
    files = source_files()
    while True:
        path = rng.choice(files)
        lines = path.read_text(errors="replace").splitlines()
        defined = [found.group(1) for line in lines if (found := re.match(r"\s*(?:def|class) (\w+)", line))]
        if not defined:
            continue
        wanted = rng.choice(defined)
        yield f"user: Where is {wanted} defined, who uses it, and what does it do?\n\n"
        yield f'assistant: search(pattern="{wanted}", path="{_name(path.parent / path.name)}")\n\ntool:\n'
        yield (
            "".join(f"{_name(path)}:{n}: {line}\n" for n, line in enumerate(lines, 1) if wanted in line)
            + "\n"
        )
        start = next(n for n, line in enumerate(lines) if re.match(rf"\s*(?:def|class) {wanted}\b", line))
        first, last = max(start - 20, 0), min(start + rng.randint(60, 200), len(lines))
        yield f'assistant: read_file(path="{_name(path)}", first={first + 1}, last={last})\n\ntool:\n'
        yield "".join(f"{n + 1:5}\t{lines[n]}\n" for n in range(first, last)) + "\n"
        beside = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix == ".py")
        yield (
            f'assistant: list_files(path="{_name(path.parent / "x")[:-1]}")\n\ntool:\n'
            + "\n".join(beside)
            + "\n\n"
        )
        yield f"assistant: {wanted} is defined in {_name(path)}, line {start + 1}.\n\n"


KINDS: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "code": code,
    "documentation": documentation,
    "dialogue": dialogue,
    "agent": agent,
}


def passage(kind: str, characters: int, seed: int) -> str:
    """Text of one kind.

    Parameters
    ----------
    kind
        A key of `KINDS`.
    characters
        Least length; kinds that end before it begin again, in another order.
    seed
        Another one gives other text.
    """
    rng = random.Random(f"{kind} {seed}")
    parts: list[str] = []
    length = 0
    while length < characters:
        for part in KINDS[kind](rng):
            parts.append(part)
            length += len(part)
            if length >= characters:
                break
    return "".join(parts)
