"""ConfigError: a setting that RheoServe cannot serve with."""

from __future__ import annotations

import typing

FLAG = "--rheo-config"


class ConfigError(ValueError):
    """A setting that RheoServe cannot serve with; the message names it, its value and what is allowed."""


def reject(name: str, value: object, allowed: str, source: str = FLAG) -> typing.NoReturn:
    """Raise a `ConfigError` in the one form that all of them have."""
    raise ConfigError(f"{source}: {name}={value!r} is not supported; allowed: {allowed}")
