"""ImportanceCachePolicy: a cache policy for vLLM's KV offloading that evicts by a RheoServe server's importance.

vLLM loads it by module path: ``cache_policy_module_path`` ``rheo_sglang.importance.vllm``, name
``ImportanceCachePolicy``. The environment variable ``RHEO_IMPORTANCE_FILE`` names the server's file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rheo_sglang.importance.file import ImportanceFile
from rheo_sglang.importance.ranking import Ranking, block_hash

if TYPE_CHECKING:
    Base = object
else:
    try:
        from vllm.v1.kv_offload.cpu.policies.base import CachePolicy as Base
    except ImportError:
        Base = object

FILE = "RHEO_IMPORTANCE_FILE"


class ImportanceCachePolicy(Base):
    """Blocks that nobody transfers are evicted by importance and recency, see `Ranking`.

    Keys are bytes that begin with a content hash. Those of vLLM's own hashing are unknown to an SGLang server and go
    by recency; a cache that is keyed by SGLang's SHA-256 hashes is known. A subclass may say otherwise in `hash_of`.

    Parameters
    ----------
    cache_capacity
        Blocks that the cache has room for; this policy needs no bound of its own.

    Raises
    ------
    RuntimeError
        If the environment does not name a file.
    """

    hash_of = staticmethod(block_hash)

    def __init__(self, cache_capacity: int) -> None:
        path = os.environ.get(FILE)
        if not path:
            raise RuntimeError(f"{FILE} is not set; allowed: the file that a server writes (importance_file)")
        self.cache_capacity = cache_capacity
        self.blocks: dict[bytes, Any] = {}
        self.ranking: Ranking[bytes] = Ranking(ImportanceFile(path), self.hash_of)

    def get(self, key: bytes) -> Any | None:
        """The block of a key, or None."""
        return self.blocks.get(key)

    def insert(self, key: bytes, block: Any, req_context: Any = None) -> None:
        """Add a block as the latest used; newer versions of vLLM name the request too."""
        self.blocks[key] = block
        self.ranking.use([key])

    def remove(self, key: bytes) -> None:
        """Take a block out; KeyError where there is none."""
        del self.blocks[key]
        self.ranking.remove([key])

    def touch(self, keys: Iterable[bytes], req_context: Any = None) -> None:
        """Note a use of those keys that are cached; the first blocks of a prefix count as the latest used."""
        self.ranking.use([key for key in reversed(list(keys)) if key in self.blocks])

    def evict(self, n: int, protected: set[bytes]) -> list[tuple[bytes, Any]] | None:
        """Take out exactly ``n`` blocks that are ready, in no transfer and not protected, or none of them: None."""
        keys = self.ranking.least(n, lambda key: key not in protected and self.blocks[key].ref_cnt == 0)
        if len(keys) < n:
            return None
        self.ranking.remove(keys)
        return [(key, self.blocks.pop(key)) for key in keys]

    def clear(self) -> None:
        """Forget every block."""
        self.blocks.clear()
        self.ranking.clear()
