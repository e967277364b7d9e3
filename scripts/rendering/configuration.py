#!/usr/bin/env python3
"""Write the README's table of settings from RheoConfig and the registries that its choices come from.

PYTHONPATH=scripts python -m rendering.configuration
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import typing

from common.measurement import REPOSITORY
from rendering.marked_page import fill
from rheo_sglang.config import REGISTRIES, RheoConfig

README = REPOSITORY / "README.md"


def meanings() -> dict[str, str]:
    """What each setting means: the string below it in the class."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(RheoConfig)).body[0]).body
    found = {}
    for one, below in itertools.pairwise(body):
        if isinstance(one, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = " ".join(str(ast.literal_eval(below.value)).split()).replace("``", "`")
            found[typing.cast(ast.Name, one.target).id] = text.removesuffix(".")
    return found


def choices(key: str) -> tuple[str, ...]:
    """Values that a setting chooses from, those of the package itself; none for a setting that is no choice."""
    if key in REGISTRIES:
        registry = REGISTRIES[key]
        return tuple(
            name for name in registry.names() if registry[name].__module__.startswith("rheo_sglang.")
        )
    hint = typing.get_type_hints(RheoConfig)[key]
    kinds = (hint, *typing.get_args(hint))
    return next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is typing.Literal), ())


def table() -> str:
    """A row per setting: its key, default, choices and meaning."""
    means = meanings()
    rows = ["| key | default | choices | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(RheoConfig):
        default = "not given" if field.default is None else f"`{json.dumps(field.default)}`"
        listed = ", ".join(f"`{json.dumps(choice)}`" for choice in choices(field.name))
        rows.append(f"| `{field.name}` | {default} | {listed} | {means[field.name]} |")
    return "\n".join(rows)


if __name__ == "__main__":
    fill(README, "settings", table())
