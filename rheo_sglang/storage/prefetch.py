"""Prefetch: the pages of one waiting request that are asked for, and read, while it waits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from rheo_sglang.storage.counters import StorageCounters
from rheo_sglang.storage.page_memory import PageMemory
from rheo_sglang.storage.store import Store
from rheo_sglang.threads import start_thread

BATCH = 8
"""Pages that are read in one call of the backend."""


@dataclass(eq=False)
class Prefetch:
    """One request's prefix in storage.

    Attributes
    ----------
    rid
        The request.
    key
        SGLang's radix key of its prompt.
    start
        Tokens that the radix tree has already.
    keys
        Storage keys of the pages behind them, ``[X]``.
    node, receipt
        The tree's node where those tokens end, and what locks it; None of the root.
    since
        When it was begun, in seconds.
    found
        How many of these pages storage has; None until that is known.
    slots
        Slots of the pages that they are read into, ``[Y * P]``; None until they are allocated.
    done
        Pages that are read and right, from the first one on.
    ended
        Whether no more will be read.
    moved
        When it got on last, in seconds.
    """

    rid: str
    key: Any
    start: int
    keys: list[str]
    node: Any = None
    receipt: Any = None
    since: float = field(default_factory=time.monotonic)
    found: int | None = None
    slots: torch.Tensor | None = None
    pages: list[int] = field(default_factory=list)
    summaries: torch.Tensor | None = None
    worth: torch.Tensor | None = None
    done: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    moved: float = field(default_factory=time.monotonic)
    _cancelled: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cancel(self) -> int:
        """Have nobody write to its pages from now on; returns how many of them are right.

        Waits for no more than one page that is being copied.
        """
        with self._lock:
            self._cancelled = True
            return self.done

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled


class PrefetchReader:
    """A thread that asks storage for prefixes and reads them into host pages.

    Parameters
    ----------
    memory
        Where pages go.
    store
        Where they are.
    counters
        What is counted.
    """

    def __init__(self, memory: PageMemory, store: Store, counters: StorageCounters) -> None:
        self.memory = memory
        self.store = store
        self.counters = counters
        self._records = [torch.zeros(memory.format.record_bytes, dtype=torch.uint8) for _ in range(BATCH)]
        self._asked: queue.SimpleQueue[Prefetch] = queue.SimpleQueue()

    def start(self, died: Callable[[str], None]) -> threading.Thread:
        """Read from now on, for as long as the process lives; see `start_thread`."""
        return start_thread("rheo-storage-reader", self._run, died)

    def put(self, prefetch: Prefetch) -> None:
        """Have a prefetch looked up, or, once it has pages, read."""
        self._asked.put(prefetch)

    def _run(self) -> None:
        while True:
            self.step()

    def step(self) -> None:
        """Do what was asked for first, or wait until something is."""
        prefetch = self._asked.get()
        if prefetch.cancelled:
            prefetch.ended.set()
        elif prefetch.slots is None:
            prefetch.found = self.store.leading(prefetch.keys)
            if not prefetch.found:
                prefetch.ended.set()
        else:
            self._read(prefetch)
            prefetch.ended.set()

    def _read(self, prefetch: Prefetch) -> None:
        memory = self.memory
        memory.settle()
        for first in range(0, len(prefetch.pages), BATCH):
            pages = prefetch.pages[first : first + BATCH]
            keys, records = prefetch.keys[first : first + len(pages)], self._records[: len(pages)]
            received = self.store.read(keys, records)
            for key, page, record, there in zip(keys, pages, records, received, strict=True):
                if not there:
                    self.counters.add("pages_missing")
                    return
                self.counters.add("pages_read")
                self.counters.add("bytes_read", record.numel())
                if not memory.format.holds(record.numpy(), key):
                    self.counters.add("pages_corrupt")
                    self.store.discard(key)
                    return
                if not self._take(prefetch, page, record):
                    return

    def _take(self, prefetch: Prefetch, page: int, record: torch.Tensor) -> bool:
        """Copy a record to its page, unless the prefetch was cancelled and the page is another's."""
        assert prefetch.summaries is not None and prefetch.worth is not None
        with prefetch._lock:
            if prefetch.cancelled:
                return False
            self.memory.write(page, record.numpy())
            self.memory.read_rows(record.numpy(), prefetch.done, prefetch.summaries, prefetch.worth)
            prefetch.done += 1
            prefetch.moved = time.monotonic()
        return True
