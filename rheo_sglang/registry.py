"""Registry: implementations of one kind (page summaries, budget rules, tiering policies) by name."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Protocol, TypeVar

from rheo_sglang.errors import ConfigError, reject


class Named(Protocol):
    """A class that can be registered."""

    name: ClassVar[str]


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Classes of one kind, each under the name that the configuration calls it by.

    Parameters
    ----------
    kind
        What they are, which is also the configuration's key (``summary``, ``budget``, ``policy``).
    base
        What all of them are subclasses of.
    """

    def __init__(self, kind: str, base: type) -> None:
        self.kind = kind
        self.base = base
        self._classes: dict[str, type[T]] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Decorator: add a class under its ``name``.

        Raises
        ------
        ConfigError
            If it is no subclass of the base, has no name or lacks methods, or another class has the name.
        """
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise ConfigError(
                f"{self.kind}: {_place(cls)} is no {self.base.__name__}; allowed: subclasses of {_place(self.base)}"
            )
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{self.kind}: {_place(cls)} has name={name!r}; allowed: a text of its own")
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise ConfigError(
                f"{self.kind}={name!r}: {_place(cls)} lacks {', '.join(missing)}; allowed: classes with every method"
            )
        known = self._classes.setdefault(cls.name, cls)
        if known is not cls:
            raise ConfigError(
                f"{self.kind}={cls.name!r} is registered twice, by {_place(known)} and {_place(cls)}; "
                "allowed: one class per name"
            )
        return cls

    def names(self) -> tuple[str, ...]:
        """Names in the order in which they were registered."""
        return tuple(self._classes)

    def __getitem__(self, name: str) -> type[T]:
        """The class of that name; raises `ConfigError` if there is none."""
        if not isinstance(name, str) or name not in self._classes:
            reject(self.kind, name, ", ".join(self._classes))
        return self._classes[name]


def _place(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}" if hasattr(cls, "__qualname__") else repr(cls)
