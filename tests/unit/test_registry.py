"""A registry refuses what could not be chosen or built, in one sentence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pytest

from rheo_sglang.errors import ConfigError
from rheo_sglang.registry import Registry


class Shape(ABC):
    """Something with one method."""

    @abstractmethod
    def area(self) -> float:
        """Its size."""


class Nameless(Shape):
    def area(self) -> float:
        return 0.0


class Numbered(Nameless):
    name = 5


class Unfinished(Shape):
    name = "unfinished"


class Stranger:
    name = "stranger"

    def area(self) -> float:
        return 1.0


def named() -> None:
    """A function where a class is expected."""


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Nameless, "name=None"),
        (Numbered, "name=5"),
        (Unfinished, "lacks area"),
        (Stranger, r"Stranger is no Shape; allowed: subclasses of .*\.Shape$"),
        (named, "named is no Shape"),
        (7, "7 is no Shape"),
    ],
)
def test_a_class_that_could_not_be_chosen_or_built_is_refused(cls: Any, said: str) -> None:
    registry: Registry[Any] = Registry("shape", Shape)
    with pytest.raises(ConfigError, match=said) as caught:
        registry.register(cls)
    assert "allowed:" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert registry.names() == ()
