"""StorageWriter: a thread that writes pending pages to the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from rheo_sglang.storage.counters import StorageCounters
from rheo_sglang.storage.page_memory import PageMemory
from rheo_sglang.storage.pending import PendingPages, Segment
from rheo_sglang.storage.store import Store
from rheo_sglang.threads import start_thread

BATCH = 8
"""Pages that are written before importance is read anew."""
UNSAVED_SECONDS = 0.1
"""How long a page is left alone that a forward pass is yet to save."""


class StorageWriter:
    """Writes the most important prefix first, and only pages that the store lacks.

    Parameters
    ----------
    pending
        What is to be written.
    memory
        Where pages are.
    store
        Where they go.
    counters
        What is counted.
    """

    def __init__(
        self, pending: PendingPages, memory: PageMemory, store: Store, counters: StorageCounters
    ) -> None:
        self.pending = pending
        self.memory = memory
        self.store = store
        self.counters = counters
        self._record = torch.zeros(memory.format.record_bytes, dtype=torch.uint8)
        self._postponed: list[tuple[float, Segment]] = []

    def start(self, died: Callable[[str], None]) -> threading.Thread:
        """Write from now on, for as long as the process lives; see `start_thread`."""
        return start_thread("rheo-storage-writer", self._run, died)

    def _run(self) -> None:
        while True:
            self.step(UNSAVED_SECONDS)

    def step(self, timeout: float | None = None) -> None:
        """Write a few pages, or wait for some."""
        now = time.monotonic()
        while self._postponed and self._postponed[0][0] <= now:
            self.counters.add("pages_dropped", self.pending.offer(self._postponed.pop(0)[1]))
        segment = self.pending.take(BATCH, self.memory.importance, timeout)
        if segment is not None:
            self.write(segment)

    def write(self, segment: Segment) -> None:
        """Write a segment's pages, except those that were freed or that the store has; unsaved ones are postponed.

        While the store rests after a failure they are dropped: a full disk is not asked for every page.
        """
        memory = self.memory
        memory.settle()
        unsaved = memory.unsaved(segment.pages)
        pages = segment.pages.tolist()
        record = self._record.numpy()
        for place, (key, page) in enumerate(zip(segment.keys, pages, strict=True)):
            one = slice(place, place + 1)
            if self.store.rests:
                self.counters.add("pages_dropped", len(segment) - place)
                return
            if unsaved[place]:
                later = Segment([key], segment.pages[one], segment.generations[one])
                self._postponed.append((time.monotonic() + UNSAVED_SECONDS, later))
                continue
            if self.store.has(key):
                self.counters.add("pages_already_stored")
                continue
            memory.read(page, record)
            if not memory.unchanged(segment.pages[one], segment.generations[one])[0]:
                self.counters.add("pages_freed_first")
                continue
            memory.format.seal(record, key)
            if self.store.write(key, self._record):
                self.counters.add("pages_written")
                self.counters.add("bytes_written", len(record))
