"""ImportanceExport: writes the importance of every cached block to a file, beside what the scheduler does."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections.abc import Callable

import torch

from rheo_sglang.importance.file import Snapshot, write_snapshot
from rheo_sglang.threads import in_words, start_thread
from rheo_sglang.tree.importance import Blocks, TreeImportance

logger = logging.getLogger(__name__)


class ImportanceExport:
    """Reads the tree and launches a copy every so often; a thread waits for it and writes the file.

    The scheduler's thread walks the tree, which is its own, and launches a few reductions over the page table on a
    stream of their own; it waits for nothing. What it reads of a page is what the last forward pass that touched it
    left, or the one that runs.

    Parameters
    ----------
    importance
        Importance of the tree's blocks.
    path
        The file.
    interval
        Seconds between two snapshots. None is taken while nothing changes.
    clock
        Seconds, monotonic.

    Attributes
    ----------
    written, skipped
        Files written, and snapshots that were due while the one before was still being written.
    ended
        Whether the thread is gone, so that no more snapshots are taken.
    """

    def __init__(
        self,
        importance: TreeImportance,
        path: str,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.importance = importance
        self.path = path
        self.interval = interval
        self.clock = clock
        self.written = self.skipped = 0
        self.ended = False
        self._fails = False
        self._due = -float("inf")
        self._exported: tuple[int, ...] | None = None
        self._pending: queue.Queue[tuple[Blocks, list[torch.Tensor], torch.cuda.Event | None, int]] = (
            queue.Queue(maxsize=1)
        )
        device = importance.table.frame_of.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.thread = start_thread("rheo-importance", self._write_all, self._died)

    def poll(self) -> None:
        """Take a snapshot if one is due; called by the scheduler's thread between two steps."""
        now = self.clock()
        if now < self._due or self.ended:
            return
        self._due = now + self.interval
        table, tree = self.importance.table, self.importance.tree_cache
        state = (
            table.activity.steps,
            table.total_summarised_tokens,
            tree.evictable_size(),
            tree.protected_size(),
        )
        if state == self._exported:
            return
        if self._pending.unfinished_tasks:
            self.skipped += 1
            return
        self._exported = state
        self._pending.put(self._take(table.activity.steps))

    def flush(self) -> None:
        """Wait until what was taken is written, or given up."""
        self._pending.join()

    def _take(self, step: int) -> tuple[Blocks, list[torch.Tensor], torch.cuda.Event | None, int]:
        blocks = self.importance.blocks()
        if self._stream is None:
            return blocks, self._read(blocks.pages), None, step
        self._stream.wait_stream(torch.cuda.current_stream())
        blocks.pages.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            copies = [column.to("cpu", non_blocking=True) for column in self._read(blocks.pages)]
            event = torch.cuda.Event()
            event.record()
        return blocks, copies, event, step

    def _read(self, pages: torch.Tensor) -> list[torch.Tensor]:
        importance = self.importance
        return [importance.of_held(pages), importance.resident(pages), importance.idle_steps(pages)]

    def _died(self, reason: str) -> None:
        self.ended = True
        logger.warning(
            "rheo: importance_file=%r is not written any more, for its thread ended (%s)", self.path, reason
        )
        with contextlib.suppress(queue.Empty):
            while True:
                self._pending.get_nowait()
                self._pending.task_done()

    def _write_all(self) -> None:
        while True:
            blocks, columns, event, step = self._pending.get()
            try:
                if event is not None:
                    event.synchronize()
                values, resident, idle_steps = (column.numpy() for column in columns)
                content = {
                    "block_hash": blocks.hashes,
                    "importance": values,
                    "resident": resident,
                    "position": blocks.positions,
                    "idle_steps": idle_steps,
                }
                self._write(Snapshot(content, self.importance.page_size, step, time.time()))
            finally:
                self._pending.task_done()

    def _write(self, snapshot: Snapshot) -> None:
        """Write a file, or say that it cannot be written: once, until it can."""
        try:
            write_snapshot(self.path, snapshot)
        except OSError as error:
            if not self._fails:
                self._fails = True
                logger.warning(
                    "rheo: importance_file=%r cannot be written (%s); it is tried again with every snapshot",
                    self.path,
                    in_words(error),
                )
            return
        if self._fails:
            self._fails = False
            logger.info("rheo: importance_file=%r is written again", self.path)
        self.written += 1
