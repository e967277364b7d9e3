"""Which test files depend on SGLang: they alone are run with every supported version of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

USES = re.compile(r"(?<![\w-])sglang(?:\.\w| import\b)")
"""SGLang's modules in imports and in strings, but not `rheo_sglang`."""
ROOTS = ("", "kernels", "scripts")
"""Folders of the repository whose modules are imported by their names."""


def files_that_use_sglang(repository: Path, folder: str) -> list[str]:
    """Test files below a folder that import SGLang, themselves or through the project's modules.

    Parameters
    ----------
    repository : Path
        Root of the project.
    folder : str
        Below it.

    Returns
    -------
    list of str
        Paths relative to the root, sorted.
    """
    known: dict[Path, bool] = {}
    tests = sorted((repository / folder).rglob("test_*.py"))
    return [
        str(test.relative_to(repository))
        for test in tests
        if any(_mentions(file, known) for file in reached(repository, test))
    ]


def reached(repository: Path, start: Path) -> set[Path]:
    """Files of the project that a module imports, at its top or in functions, the module itself included."""
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imported(repository, file)
    return found


def _mentions(file: Path, known: dict[Path, bool]) -> bool:
    if file not in known:
        known[file] = USES.search(file.read_text()) is not None
    return known[file]


def _imported(repository: Path, file: Path) -> Iterator[Path]:
    folders = [*(repository / root for root in ROOTS), file.parent]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        else:
            continue
        for name in filter(None, names):
            parts = name.split(".")
            for folder in folders:
                for module in (
                    folder.joinpath(*parts).with_suffix(".py"),
                    folder.joinpath(*parts, "__init__.py"),
                ):
                    if module.is_file():
                        yield module
