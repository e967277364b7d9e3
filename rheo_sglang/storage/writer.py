"""StorageWriter: a thread that writes pending pages to the store."""

from __future__ import annotations

import logging
import threading
import time

import torch

from rheo_sglang.storage.counters import StorageCounters
from rheo_sglang.storage.page_memory import PageMemory
from rheo_sglang.storage.pending import PendingPages, Segment
from rheo_sglang.storage.store import Store

logger = logging.getLogger(__name__)

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
        self._busy = threading.Lock()
        self._postponed: list[tuple[float, Segment]] = []

    def start(self) -> None:
        """Write from now on, for as long as the process lives."""
        threading.Thread(target=self._run, name="rheo-storage-writer", daemon=True).start()

    @property
    def idle(self) -> bool:
        """Whether everything that was offered is written, dropped or postponed."""
        return not len(self.pending) and not self._busy.locked()

    def _run(self) -> None:
        while True:
            try:
                self.step(UNSAVED_SECONDS)
            except Exception:
                self.counters.add("write_errors")
                logger.exception("rheo: pages could not be written to the storage")

    def step(self, timeout: float | None = None) -> None:
        """Write a few pages, or wait for some."""
        now = time.monotonic()
        while self._postponed and self._postponed[0][0] <= now:
            self.counters.add("pages_dropped", self.pending.offer(self._postponed.pop(0)[1]))
        with self._busy:
            segment = self.pending.take(BATCH, self.memory.importance, timeout)
            if segment is not None:
                self.write(segment)

    def write(self, segment: Segment) -> None:
        """Write a segment's pages, except those that were freed or that the store has; unsaved ones are postponed."""
        memory = self.memory
        memory.settle()
        unsaved = memory.unsaved(segment.pages)
        pages = segment.pages.tolist()
        record = self._record.numpy()
        for place, (key, page) in enumerate(zip(segment.keys, pages, strict=True)):
            one = slice(place, place + 1)
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
