"""StorageTier: the scheduler's side of the tier under DRAM: what is offered to it, and what comes back."""

from __future__ import annotations

import logging
import threading
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rheo_sglang import compat
from rheo_sglang.errors import reject
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.storage.counters import StorageCounters
from rheo_sglang.storage.fingerprint import fingerprint, namespace
from rheo_sglang.storage.page_memory import PageMemory
from rheo_sglang.storage.pending import PendingPages, Segment
from rheo_sglang.storage.prefetch import Prefetch, PrefetchReader
from rheo_sglang.storage.store import Store, open_backend
from rheo_sglang.storage.writer import StorageWriter
from rheo_sglang.tree.nodes import node_pages, slot_pages

logger = logging.getLogger(__name__)

PENDING_SHARE = 2
"""One in so many pages of the host pool may wait to be written, and as many may be read into at a time."""
STALLED_SECONDS = 30.0
"""A prefetch that has not got on for so long is given up, whatever the policy."""
IDLE_SECONDS = 0.001
"""How long an idle scheduler leaves the processor to the reader before it looks again."""
LONGEST_NAME = 80


@dataclass(frozen=True)
class PrefetchPolicy:
    """When a waiting request stops to wait for its prefix.

    Attributes
    ----------
    name
        SGLang's ``--hicache-storage-prefetch-policy``: ``best_effort`` stops when the request could run, ``timeout``
        some time after it came, ``wait_complete`` when everything is read.
    threshold
        Fewest tokens that are worth asking for.
    base, per_page
        Seconds until ``timeout`` stops: for each prefetch, and for each of its pages.
    """

    name: str = "timeout"
    threshold: int = 256
    base: float = 1.0
    per_page: float = 0.0

    def ends(self, prefetch: Prefetch, now: float) -> bool:
        """Whether a prefetch that is not complete is to end."""
        if self.name == "best_effort" or now - prefetch.moved > STALLED_SECONDS:
            return True
        allowed = self.base + self.per_page * len(prefetch.keys)
        return self.name == "timeout" and now - prefetch.since > allowed


def make_storage(scheduler: Any) -> StorageTier | None:
    """The storage tier that a scheduler's arguments ask for; None if they ask for none or another backend serves.

    Raises
    ------
    ConfigError
        If SGLang's backend cannot be made.
    """
    allocator = scheduler.token_to_kv_pool_allocator
    pool, arguments = allocator.get_kvcache(), scheduler.server_args
    name = arguments.hicache_storage_backend
    if name is None or not isinstance(pool, RheoKVPool):
        return None
    flag = "--hicache-storage-backend-extra-config"
    text = arguments.hicache_storage_backend_extra_config
    settings, threshold, base, per_1024, _ = compat.storage_settings(text)
    runner = scheduler.tp_worker.model_runner
    model = Path(arguments.served_model_name or arguments.model_path).name[-LONGEST_NAME:]
    try:
        backend = open_backend(name, settings, model)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        reject(flag, text, f"what --hicache-storage-backend {name} can be made with ({reason})", "rheo")
    policy = PrefetchPolicy(
        arguments.hicache_storage_prefetch_policy,
        max(threshold, pool.page_size),
        base,
        per_1024 * pool.page_size / 1024,
    )
    tier = StorageTier(
        scheduler.tree_cache, allocator, backend, policy, runner.model, runner.model_config.hf_config, name
    )
    tier.start()
    return tier


class StorageTier:
    """Offers the pages of new tree nodes to storage, and brings back the prefixes of waiting requests.

    All methods are the scheduler's thread's, and none waits for storage. A page that is stored is named by SGLang's
    hash of its tokens and all before them, and by what else its content depends on (`fingerprint`).

    Parameters
    ----------
    tree_cache, allocator
        SGLang's radix cache, and the allocator of its pages.
    backend
        SGLang's storage backend.
    policy
        When a request stops to wait.
    model, model_config
        For `fingerprint`.
    name
        The backend's name, for the report.
    """

    def __init__(
        self,
        tree_cache: Any,
        allocator: Any,
        backend: Any,
        policy: PrefetchPolicy,
        model: torch.nn.Module,
        model_config: Any,
        name: str = "file",
    ) -> None:
        self.tree_cache = tree_cache
        self.allocator = allocator
        self.policy = policy
        self.model = model
        self.model_config = model_config
        self.name = name
        self.pool: RheoKVPool = allocator.get_kvcache()
        self.page_size = self.pool.page_size
        self.counters = StorageCounters()
        self.memory = PageMemory(self.pool)
        self.store = Store(backend, self.counters)
        self.most_pages = max(self.pool.table.pages // PENDING_SHARE, 1)
        self.pending = PendingPages(self.most_pages)
        self.writer = StorageWriter(self.pending, self.memory, self.store, self.counters)
        self.reader = PrefetchReader(self.memory, self.store, self.counters)
        self.fingerprint = fingerprint(self.pool, model, model_config)
        self.off: str | None = None
        self.threads: tuple[threading.Thread, ...] = ()
        self._prefetches: dict[str, Prefetch] = {}
        self._restoring = False

    def start(self) -> None:
        """Begin to read and write."""
        self.threads = (
            self.writer.start(lambda reason: self._turn_off(f"the thread that writes ended ({reason})")),
            self.reader.start(lambda reason: self._turn_off(f"the thread that reads ended ({reason})")),
        )
        logger.info(
            "rheo: cached prefixes are kept in storage (%s), %.2f MiB a page, keys of %s",
            self.name,
            self.memory.format.record_bytes / (1 << 20),
            self.fingerprint[:16],
        )

    def note_insert(self, node: Any) -> None:
        """Offer a new node's pages; called by the tree when it has one."""
        if self.off is not None or self._restoring:
            return
        pages = node_pages(node, self.page_size)
        suffix = "-" + namespace(self.fingerprint, node.key.extra_key, getattr(node.key, "cache_salt", None))
        keys = [text + suffix for text in compat.storage_hashes(node, self.page_size)]
        self.counters.add("pages_offered", len(keys))
        segment = Segment(keys, pages, self.memory.generations(pages))
        self.counters.add("pages_dropped", self.pending.offer(segment))

    def note_freed(self, pages: torch.Tensor) -> None:
        """Note that pages were freed, ``[X]``, integer; called by the allocator before it hands them out again."""
        self.memory.free(pages)

    def note_cleared(self) -> None:
        """Note that every page was freed and the tree is empty."""
        self.memory.free(torch.arange(self.pool.table.pages, device=self.memory.device))
        for prefetch in self._prefetches.values():
            prefetch.cancel()
        self._prefetches.clear()

    def note_weights(self) -> None:
        """Note that the model has other weights: pages that were made with them have other keys.

        Where prefixes of the old weights are still cached, what is made behind them is of neither, and storage is off
        from then on.
        """
        self.counters.add("pages_dropped", self.pending.clear())
        for rid in list(self._prefetches):
            self.abandon(rid)
        if self.tree_cache.evictable_size() + self.tree_cache.protected_size():
            self._turn_off("weights were changed without a flush")
            return
        self.fingerprint = fingerprint(self.pool, self.model, self.model_config)

    def prefetch(self, request: Any) -> None:
        """Begin to look for the prefix of a request that came into the queue, behind what the tree has of it."""
        if self.off is not None or request.rid in self._prefetches or not _has_plain_prompt(request):
            return
        tokens = array("q", request.origin_input_ids)
        tokens.extend(request.output_ids)
        longest = request._compute_max_prefix_len(len(tokens)) // self.page_size * self.page_size
        key = compat.request_key(request, tokens[:longest])
        slots, node = compat.match_prefix(self.tree_cache, key)
        start = slots.numel()
        if longest - start < self.policy.threshold:
            return
        before = None
        if start:
            before = compat.storage_hashes(self.tree_cache.tree_core.node_by_id(node), self.page_size)[-1]
        texts = compat.page_hashes(compat.request_key(request, tokens[start:longest]), before, self.page_size)
        suffix = "-" + namespace(self.fingerprint, key.extra_key, getattr(key, "cache_salt", None))
        prefetch = Prefetch(request.rid, key, start, [text + suffix for text in texts])
        if start:
            prefetch.node, prefetch.receipt = node, self.tree_cache.inc_lock_ref(node)
        self.counters.add("prefixes_asked_for")
        self._prefetches[request.rid] = prefetch
        self.reader.put(prefetch)

    def ready(self, rid: str) -> bool:
        """Whether a waiting request waits no longer for its prefix; if so, what was read of it is in the tree.

        Nobody waits for storage that is off.
        """
        prefetch, on = self._prefetches.get(rid), self.off is None
        if prefetch is None:
            return True
        if on and prefetch.found and prefetch.slots is None and not prefetch.ended.is_set():
            self._allocate(prefetch)
        if not prefetch.ended.is_set():
            if on and not self.policy.ends(prefetch, time.monotonic()):
                return False
            self.counters.add("prefetches_cut")
        self._finish(prefetch, insert=True)
        return True

    def abandon(self, rid: str) -> None:
        """Forget about a request that has gone."""
        prefetch = self._prefetches.get(rid)
        if prefetch is not None:
            self._finish(prefetch, insert=False)

    def rest(self, waiting: set[str]) -> None:
        """Leave the processor to the reader for a moment, where a request waits for it and nothing else is to do.

        Whatever is read for requests that are not among those that wait is forgotten.
        """
        for rid in self._prefetches.keys() - waiting:
            self.abandon(rid)
        prefetch = next(iter(self._prefetches.values()), None)
        if prefetch is not None:
            prefetch.ended.wait(IDLE_SECONDS)

    def report(self) -> dict[str, Any]:
        """What ``/server_info`` tells."""
        return {
            "backend": self.name,
            "policy": self.policy.name,
            "page_bytes": self.memory.format.record_bytes,
            "off": self.off,
            "pages_pending": len(self.pending),
            "prefetches": len(self._prefetches),
            **self.counters.report(),
        }

    def _turn_off(self, reason: str) -> None:
        """Store and read nothing any more; any thread may say so, the first one is heard."""
        if self.off is None:
            self.off = reason
            logger.warning("rheo: storage is off from now on, for %s", reason)
        self.counters.add("pages_dropped", self.pending.clear())

    def _allocate(self, prefetch: Prefetch) -> None:
        """Give a prefetch pages for what storage has of it, as far as there is room, and have it read."""
        assert prefetch.found is not None
        self.counters.add("prefixes_found")
        self.counters.add("pages_found", prefetch.found)
        in_flight = sum(len(other.pages) for other in self._prefetches.values())
        count = min(prefetch.found, self.most_pages - in_flight)
        slots = (
            compat.allocate(self.tree_cache, self.allocator, count * self.page_size) if count > 0 else None
        )
        rows = None if slots is None else self.memory.empty_rows(count)
        if slots is None or rows is None:
            if slots is not None:
                self.allocator.free(slots)
            self.counters.add("prefetches_declined")
            prefetch.ended.set()
            return
        prefetch.pages = slot_pages(slots, self.page_size).tolist()
        prefetch.summaries, prefetch.worth = rows
        prefetch.moved = time.monotonic()
        prefetch.slots = slots
        self.reader.put(prefetch)

    def _finish(self, prefetch: Prefetch, insert: bool) -> None:
        """End a prefetch: what was read goes into the tree, the other pages go back."""
        del self._prefetches[prefetch.rid]
        done = prefetch.cancel() if insert else 0 * prefetch.cancel()
        if prefetch.slots is not None:
            kept = done * self.page_size
            if kept < prefetch.slots.numel():
                self.allocator.free(prefetch.slots[kept:])
            if done:
                self._insert(prefetch, done, prefetch.slots[:kept])
        if prefetch.receipt is not None:
            self.tree_cache.dec_lock_ref(prefetch.node, prefetch.receipt.to_dec_params())

    def _insert(self, prefetch: Prefetch, done: int, slots: torch.Tensor) -> None:
        assert prefetch.summaries is not None and prefetch.worth is not None
        pages = slot_pages(slots, self.page_size)
        self.pool.table.restore(pages, prefetch.summaries[:, :, :done], prefetch.worth[:, :, :done])
        key = prefetch.key[: prefetch.start + slots.numel()]
        found, _ = compat.match_prefix(self.tree_cache, prefetch.key[: prefetch.start])
        self._restoring = True
        try:
            compat.insert_prefix(self.tree_cache, key, torch.cat([found, slots]), prefetch.start)
        finally:
            self._restoring = False
        self.counters.add("pages_restored", done)


def _has_plain_prompt(request: Any) -> bool:
    """Whether a request's K and V depend on its tokens alone, and nobody else keeps its prefix."""
    return (
        request.session is None
        and getattr(request, "positional_embed_overrides", None) is None
        and getattr(request, "input_embeds", None) is None
        and request.to_finish is None
        and not request.finished()
    )
