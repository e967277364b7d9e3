"""Doorbell: a thread that runs attention tasks when a GPU signals through memory, without the driver in between."""

from __future__ import annotations

import torch

from rheo_kernels.cpu import _native
from rheo_kernels.cpu.problem import check_buffer
from rheo_kernels.cpu.task import Task

SIGNAL, REQUESTS, COMPLETED = _native.doorbell_positions
"""Positions in `Doorbell.words`: sequence number of the latest signal, its requests, sequence number completed last."""
WORDS = _native.doorbell_words


class Doorbell:
    """A thread that waits for signals and runs the task that each one asks for.

    A GPU signals by writing a new sequence number ``n`` to ``words[SIGNAL]`` and, in the same 64-bit write, the
    number of requests to ``words[REQUESTS]``. That asks for task ``(n - 1) % tasks``. The queries have arrived by
    then; the task's lists may arrive later, in words with the tag ``n``, see `rheo_kernels.types.offload_words`.
    The results may be read once ``words[COMPLETED]`` is ``n``, and only then may the next signal follow. The thread
    keeps a core busy while signals are less than 20 ms apart, and next to nothing of it after a second of silence.

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
        self._native = _native.Doorbell(words.data_ptr(), tasks)

    def assign(self, number: int, task: Task) -> None:
        """Have signals for task ``number`` run ``task``; until then they are completed at once."""
        self._tasks[number] = task
        self._native.assign(number, task.address)

    @property
    def signals(self) -> int:
        """Signals completed so far."""
        return self._native.signals

    @property
    def late_threads(self) -> int:
        """Threads that began so late that another one took the first pages dealt to them, over all signals so far."""
        return self._native.late_threads

    @property
    def busy_seconds(self) -> float:
        """Seconds that tasks took so far."""
        return self._native.busy_ns / 1e9

    def close(self) -> None:
        """End the thread, after the task that it is running; later signals are not completed."""
        self._native.close()

    def __del__(self) -> None:
        """Close before the tasks and the words go."""
        if hasattr(self, "_native"):
            self.close()
