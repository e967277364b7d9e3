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


@pytest.mark.parametrize(
    ("cls", "said"),
    [(Nameless, "name=None"), (Numbered, "name=5"), (Unfinished, "lacks area")],
)
def test_a_class_that_could_not_be_chosen_or_built_is_refused(cls: Any, said: str) -> None:
    registry: Registry[Any] = Registry("shape")
    with pytest.raises(ConfigError, match=said) as caught:
        registry.register(cls)
    assert "allowed:" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert registry.names() == ()
