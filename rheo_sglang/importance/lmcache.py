"""ImportanceEvictionPolicy: an eviction policy for LMCache's distributed tiers, by a RheoServe server's importance."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rheo_sglang.importance.file import ImportanceFile
from rheo_sglang.importance.ranking import Ranking, block_hash

if TYPE_CHECKING:
    Base = object
else:
    try:
        from lmcache.v1.distributed.eviction import EvictionPolicy as Base
    except ImportError:
        Base = object


def lmcache_action(keys: list[Any], destination: Any) -> Any:
    """LMCache's eviction action; it discards where no destination was registered."""
    from lmcache.v1.distributed.internal_api import EvictionAction, EvictionDestination

    return EvictionAction(keys=keys, destination=destination or EvictionDestination.DISCARD)


def chunk_hash(key: Any) -> int:
    """Block hash of an object key, whose chunk hash is SGLang's SHA-256 digest."""
    return block_hash(key.chunk_hash)


class ImportanceEvictionPolicy(Base):
    """Keys are evicted by importance and recency, see `Ranking`. Any thread may call it.

    Parameters
    ----------
    importance
        The server's file.
    hash_of
        Block hash of a key; the default is right where chunks are SGLang's pages, keyed by its SHA-256 hashes.
    action
        Makes an eviction action of keys and a destination, which may be None.
    """

    def __init__(
        self,
        importance: ImportanceFile,
        hash_of: Callable[[Any], int] = chunk_hash,
        action: Callable[[list[Any], Any], Any] = lmcache_action,
    ) -> None:
        self.ranking: Ranking[Any] = Ranking(importance, hash_of)
        self.action = action
        self.destinations: list[Any] = []
        self._lock = threading.Lock()

    def register_eviction_destination(self, destination: Any) -> None:
        """Add where evicted objects may go; the first one registered is used."""
        with self._lock:
            if destination not in self.destinations:
                self.destinations.append(destination)

    def on_keys_created(self, keys: list[Any]) -> None:
        """Track keys, as the latest used."""
        with self._lock:
            self.ranking.use(keys)

    def on_keys_touched(self, keys: list[Any]) -> None:
        """Note a use of those keys that are tracked."""
        with self._lock:
            self.ranking.use([key for key in keys if key in self.ranking])

    def on_keys_removed(self, keys: list[Any]) -> None:
        """Track keys no longer."""
        with self._lock:
            self.ranking.remove(keys)

    def get_eviction_actions(
        self,
        expected_ratio: float,
        key_eligible_filter: Callable[[Any], bool] | None = None,
        cache_salt: str | None = None,
    ) -> list[Any]:
        """One action with the given share of all tracked keys, at least one of a share above 0; none where none is.

        Keys stay tracked until `on_keys_removed`. A salt is not looked at: this policy does not keep users apart.
        """
        ratio = min(max(expected_ratio, 0.0), 1.0)
        with self._lock:
            count = max(int(len(self.ranking) * ratio), 1 if ratio > 0 else 0)
            keys = self.ranking.least(count, key_eligible_filter or (lambda key: True))
            destination = self.destinations[0] if self.destinations else None
        return [self.action(keys, destination)] if keys else []
