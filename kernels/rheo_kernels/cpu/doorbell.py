"""Doorbell: runs tasks at a GPU's word, without the driver in between."""

from __future__ import annotations

import torch

from rheo_kernels.cpu import _native
from rheo_kernels.cpu.problem import check_buffer
from rheo_kernels.cpu.task import Task

RUNG, REQUESTS, ANSWERED = _native.doorbell_positions
"""Positions in `Doorbell.words`: the number of the latest ring, for how many requests, and the number last answered."""
WORDS = _native.doorbell_words


class Doorbell:
    """A thread that waits for rings and runs the task that each one asks for.

    Whoever rings writes a new number ``n`` to ``words[RUNG]`` and at once the requests to ``words[REQUESTS]``, which
    asks for task ``(n - 1) % tasks``; queries are there by then, and its lists come in words with the tag ``n``, see
    `rheo_kernels.reference.handed`. Results may be read once ``words[ANSWERED]`` is that number. A ring may follow only
    when the one before it was answered. The thread keeps a core busy while rings are less than 20 ms apart, and next to
    nothing of it after a second of silence.

    Parameters
    ----------
    words
        ``[WORDS]``, int32, in memory that both sides see.
    tasks
        How many tasks there are, at least 1.
    """

    def __init__(self, words: torch.Tensor, tasks: int) -> None:
        check_buffer("words", words, (WORDS,), torch.int32)
        self.words = words
        self._tasks: dict[int, Task] = {}
        self._bell = _native.Doorbell(words.data_ptr(), tasks)

    def assign(self, number: int, task: Task) -> None:
        """Have rings for task ``number`` run ``task``; until then they are answered at once."""
        self._tasks[number] = task
        self._bell.assign(number, task.address)

    @property
    def rings(self) -> int:
        """Rings answered so far."""
        return self._bell.rings

    @property
    def late(self) -> int:
        """Threads that came too late for the first pages that were theirs, over all rings so far."""
        return self._bell.late

    @property
    def busy_seconds(self) -> float:
        """Seconds that tasks took so far."""
        return self._bell.busy_ns / 1e9

    def close(self) -> None:
        """End the thread, after the task that it is running; later rings are not answered."""
        self._bell.close()

    def __del__(self) -> None:
        """Close before the tasks and the words go."""
        if hasattr(self, "_bell"):
            self.close()
