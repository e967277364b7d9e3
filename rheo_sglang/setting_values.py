"""Values of settings as JSON text has them: of the right type, in range, each key once."""

from __future__ import annotations

import importlib
import json
import os
import sys
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from rheo_sglang.errors import ConfigError, reject
from rheo_sglang.registry import Registry


def read_settings_text(text: str, known: Collection[str], source: str) -> dict[str, Any]:
    """Settings from JSON text, or from the file that ``text`` names.

    Raises
    ------
    ConfigError
        If the file cannot be read, the text is no JSON object, or a key is given twice or not ``known``.
    """
    if not text.strip():
        raise ConfigError(f"{source}: {text!r} is empty; allowed: a JSON object, or a file that holds one")
    if not text.lstrip().startswith(("{", "[", '"')):
        try:
            text = Path(text).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ConfigError(
                f"{source}: {text!r} is neither a JSON object nor a readable file ({reason})"
            ) from None
    try:
        values = json.loads(text, object_pairs_hook=_each_key_once)
    except _RepeatedKeyError as twice:
        raise ConfigError(f"{source}: key {twice.args[0]!r} is given twice; allowed: once") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: {text!r} is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: {text!r} is not a JSON object; allowed: an object of settings")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"{source}: unknown key {unknown[0]!r}={values[unknown[0]]!r}; allowed keys: {', '.join(known)}"
        )
    return values


class _RepeatedKeyError(Exception):
    """A JSON object names a key twice, of which `json` would silently keep the last."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _RepeatedKeyError(key)
        values[key] = value
    return values


def import_extensions(names: object) -> None:
    """Import the modules that a list names; a `ConfigError` in one sentence if that cannot be."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        reject("extensions", names, "a list of importable modules")
    for name in names:
        try:
            importlib.import_module(name)
        except ConfigError:
            raise
        except Exception as error:
            reason = " ".join(f"{name}: {type(error).__name__}: {error}".split())
            reject("extensions", list(names), f"modules that can be imported ({reason})")


def typed(name: str, value: object, hint: Any, registries: Mapping[str, Registry]) -> object:
    """A value as its setting's type hint has it.

    Parameters
    ----------
    name, value
        The setting, and what was given.
    hint
        ``bool``, ``int``, ``float``, ``str``, one of these or None, `Literal`, a `Literal` or ``float``, or, of
        ``extensions``, a tuple.
    registries
        Settings whose choices are what is registered.

    Raises
    ------
    ConfigError
        On a value of another type, or that is no choice.
    """
    if name == "extensions":
        return tuple(typing.cast("list[str]", value))
    if name in registries and (value is not None or type(None) not in typing.get_args(hint)):
        registries[name][typing.cast(str, value)]
        return value
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            reject(name, value, ", ".join(choices))
        return value
    kinds = typing.get_args(hint) or (hint,)
    words = [word for kind in kinds for word in typing.get_args(kind)]
    if words:
        if value in words:
            return value
        return (
            float(value) if _is_finite_number(value) else reject(name, value, f"{', '.join(words)}, a number")
        )
    if value is None and type(None) in kinds:
        return None
    if bool in kinds:
        return value if isinstance(value, bool) else reject(name, value, "true, false")
    if str in kinds:
        return value if isinstance(value, str) and value else reject(name, value, "text that is not empty")
    if float in kinds and _is_finite_number(value):
        return float(value)
    if int in kinds and isinstance(value, int) and not isinstance(value, bool):
        return value
    return reject(name, value, "a finite number" if float in kinds else "a whole number")


def writable(path: str) -> bool:
    """Whether a file of that name could be written."""
    folder = os.path.dirname(os.path.abspath(path))
    return os.path.isdir(folder) and os.access(folder, os.W_OK) and not os.path.isdir(path)


def _is_finite_number(value: object) -> typing.TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def in_range(name: str, value: float, low: float, high: float = float("inf"), open_low: bool = False) -> None:
    """Refuse, with a `ConfigError`, a value below ``low``, or at it if ``open_low``, or above ``high``."""
    above = value > low if open_low else value >= low
    if not (above and value <= high):
        lower = f"above {low}" if open_low else f"at least {low}"
        reject(name, value, lower if high == float("inf") else f"{lower}, at most {high}")
