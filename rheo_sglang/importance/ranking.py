"""Ranking: which keys of another cache to evict, by recency and, where a server's file knows a key, its importance."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import Generic, TypeVar

from rheo_sglang.importance.file import ImportanceFile

CONSIDERED = 64
"""Least recently used keys that an eviction chooses among, or `CONSIDERED_FOR_EACH` for each key that it wants."""
CONSIDERED_FOR_EACH = 8

Key = TypeVar("Key", bound=Hashable)


def block_hash(digest: bytes) -> int:
    """The number that SGLang's KV events give a block, from the SHA-256 digest that they are made of."""
    return int.from_bytes(digest[:8], "big", signed=True)


class Ranking(Generic[Key]):
    """Keys in the order of their use, and the least valuable of those that were used longest ago.

    A key's value is its importance times its recency, ``1 / uses since its own``. A key that the file does not know
    has the mean importance of those considered that it knows, so that only recency tells it apart: without a file,
    and with one that knows no key, the order is that of LRU.

    Parameters
    ----------
    importance
        The file.
    hash_of
        Block hash of a key.
    """

    def __init__(self, importance: ImportanceFile, hash_of: Callable[[Key], int]) -> None:
        self.importance = importance
        self.hash_of = hash_of
        self._used: OrderedDict[Key, int] = OrderedDict()
        self._uses = 0

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, key: Key) -> bool:
        return key in self._used

    def use(self, keys: Iterable[Key]) -> None:
        """Note one use of keys, new ones among them, the last one the latest."""
        for key in keys:
            self._uses += 1
            self._used[key] = self._uses
            self._used.move_to_end(key)

    def remove(self, keys: Iterable[Key]) -> None:
        """Forget keys; unknown ones are ignored."""
        for key in keys:
            self._used.pop(key, None)

    def clear(self) -> None:
        """Forget every key."""
        self._used.clear()

    def least(self, count: int, evictable: Callable[[Key], bool]) -> list[Key]:
        """The ``count`` keys of least value among the evictable ones used longest ago, or all where there are fewer."""
        if count <= 0:
            return []
        oldest = list(islice(filter(evictable, self._used), max(CONSIDERED, CONSIDERED_FOR_EACH * count)))
        known = self.importance.refresh()
        found = [known.get(self.hash_of(key)) for key in oldest] if known else [None] * len(oldest)
        told = [value for value in found if value is not None]
        neutral = sum(told) / len(told) if told else 1.0

        def value(index: int) -> float:
            importance = found[index]
            age = self._uses - self._used[oldest[index]] + 1
            return (neutral if importance is None else importance) / age

        return [oldest[index] for index in sorted(range(len(oldest)), key=value)[:count]]
