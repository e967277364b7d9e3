"""Registry: implementations of one kind (page summaries, budget rules, tiering policies) by name."""

from __future__ import annotations

from typing import ClassVar, Generic, Protocol, TypeVar

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
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Decorator: add a class under its ``name``.

        Raises
        ------
        ConfigError
            If it has no name or lacks methods, or another class has the name.
        """
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


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
