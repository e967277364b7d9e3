"""TraceWriter: a thread that writes events into the parts of a trace, and drops what it has no room for."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rheo_sglang.threads import start_thread
from rheo_sglang.traces.events import Event, Step, size
from rheo_sglang.traces.format import DROPPED, MANIFEST, PART, UNFINISHED
from rheo_sglang.traces.rows import arrow_table

logger = logging.getLogger(__name__)

WAITING_BYTES = 256 * 2**20
"""Most bytes of steps that wait for the thread."""
PART_BYTES = 16 * 2**20
"""Bytes of events after which a part is written."""
PART_SECONDS = 10.0
"""Time after which a part is written, however small: what a killed server loses."""
STOP_SECONDS = 60.0
"""Time that the end of a process waits for the thread."""


class Offer(NamedTuple):
    """An event that waits for the thread: what makes it, bytes of its arrays, decode steps that it is."""

    event: Callable[[], Event]
    size: int
    steps: int


class TraceWriter:
    """Writes a trace's parts in the order in which events come.

    Nothing here waits but the thread: `offer` takes an event or drops it. What the scheduler freed is small and always
    taken, so that a page is never mistaken for the one that had its number before.

    Parameters
    ----------
    folder
        Where the trace goes; made if need be.
    manifest
        What it says of the server, JSON-ready; with ``page_size``.
    most_bytes
        Bytes of all parts after which nothing more is written.
    waiting_bytes
        Bytes of events that may wait for the thread.

    Attributes
    ----------
    dropped_steps
        Decode steps that were not written, for want of room or time.
    dropped_prompts
        Prefill passes that were not.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        most_bytes: int,
        waiting_bytes: int = WAITING_BYTES,
    ) -> None:
        import pyarrow.parquet

        self._parquet = pyarrow.parquet
        self.folder = folder
        self.page_size: int = manifest["page_size"]
        self.most_bytes = most_bytes
        self.waiting_bytes = waiting_bytes
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        self.steps = self.dropped_steps = self.dropped_prompts = self.bytes = 0
        self.ended = False
        """Whether nothing more is written: the trace is full, its folder cannot be written to, or the thread died."""
        self._queue: queue.SimpleQueue[Offer | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._events: list[tuple[int, Event]] = []
        self._event_bytes = self._events_seen = self._parts = 0
        self._since = 0.0
        self._taken_steps = 0
        """Steps that the thread took off the queue and has neither written nor dropped."""
        self._dead = False
        self._thread = start_thread("rheo-trace", self._run, self._died)
        atexit.register(self.close)

    def has_room(self, size: int) -> bool:
        """Whether an event of so many bytes would be taken now."""
        return not self.ended and self._waiting + size <= self.waiting_bytes

    def drop_step(self) -> None:
        """Count a step that is not offered."""
        with self._lock:
            self.dropped_steps += 1

    def drop_prompts(self) -> None:
        """Count a prefill pass that is not offered."""
        self.dropped_prompts += 1

    def offer(self, event: Callable[[], Event], size: int, steps: int = 0) -> None:
        """Take an event; whoever offers a large one asks `has_room` first.

        Parameters
        ----------
        event
            Called in the thread: it may wait for a copy from a GPU.
        size
            Bytes of its arrays.
        steps
            Decode steps that it is: 1 or 0.
        """
        with self._lock:
            if self._dead:
                self.dropped_steps += steps
                return
            self._waiting += size
            self._queue.put(Offer(event, size, steps))

    def close(self) -> None:
        """Write what waits, and end the thread."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(STOP_SECONDS)

    def report(self) -> dict[str, Any]:
        """Where the trace is, what it has and what it lacks, JSON-ready."""
        return {
            "folder": str(self.folder),
            "steps": self.steps,
            "dropped_steps": self.dropped_steps,
            "dropped_prompts": self.dropped_prompts,
            "bytes": self.bytes,
            "ended": self.ended,
        }

    def _run(self) -> None:
        while True:
            left = PART_SECONDS - (time.monotonic() - self._since) if self._events else None
            try:
                item = self._queue.get(timeout=None if left is None else max(left, 0.0))
            except queue.Empty:
                self._write_part()
                continue
            if item is None:
                self._write_part()
                return
            self._taken_steps += item.steps
            self._take(item.event())
            with self._lock:
                self._waiting -= item.size

    def _died(self, reason: str) -> None:
        """Drop what waits, and from now on everything: nobody would write it."""
        with self._lock:
            self.ended = self._dead = True
            lost = self._taken_steps
            with contextlib.suppress(queue.Empty):
                while True:
                    item = self._queue.get_nowait()
                    lost += 0 if item is None else item.steps
            self.dropped_steps += lost
            self._waiting = 0
        logger.warning(
            "rheo: tracing ends after %d steps, for the thread that writes %s ended (%s)",
            self.steps,
            self.folder,
            reason,
        )

    def _take(self, event: Event) -> None:
        if self.ended:
            if isinstance(event, Step):
                self.drop_step()
                self._taken_steps -= 1
            return
        if not self._events:
            self._since = time.monotonic()
        self._events.append((self._events_seen, event))
        self._events_seen += 1
        self._event_bytes += size(event)
        if self._event_bytes >= PART_BYTES:
            self._write_part()

    def _write_part(self) -> None:
        """Write the events so far as one row group; its file gets its name when it is complete."""
        events, self._events, self._event_bytes = self._events, [], 0
        if not events:
            return
        steps = sum(isinstance(event, Step) for _, event in events)
        path = self.folder / PART.format(self._parts)
        unfinished = path.with_name(path.name + UNFINISHED)
        try:
            self._write(unfinished, arrow_table(events, self.page_size))
            self.bytes += unfinished.stat().st_size
            unfinished.rename(path)
        except OSError as error:
            self.ended = True
            with self._lock:
                self.dropped_steps += steps
            self._taken_steps -= steps
            with contextlib.suppress(OSError):
                unfinished.unlink()
            logger.warning("rheo: tracing ends, for %s cannot be written (%s)", path, error.strerror or error)
            return
        self._parts += 1
        self.steps += steps
        self._taken_steps -= steps
        if self.bytes >= self.most_bytes:
            self.ended = True
            logger.warning(
                "rheo: tracing ends after %d steps, for %s has the size that trace_gib allows",
                self.steps,
                self.folder,
            )

    def _write(self, path: Path, table: Any) -> None:
        dropped = str(self.dropped_steps + self.dropped_prompts).encode()
        table = table.replace_schema_metadata({DROPPED: dropped})
        self._parquet.write_table(
            table,
            path,
            row_group_size=max(len(table), 1),
            compression="zstd",
            compression_level=1,
            use_dictionary=["kind", "request"],
            use_byte_stream_split=["scores.list.element"],
            write_statistics=["event", "step", "layer", "kind", "request", "tokens"],
        )
