"""SideStream: work that runs while the main stream's does, forked and joined by events."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

HIGH_PRIORITY = -1
"""Of a stream whose copies need few multiprocessors, but need them at once."""


class SideStream:
    """A second stream of a GPU; on other devices, work in line.

    Parameters
    ----------
    device
        Where the work runs.
    priority
        The stream's priority, lower is sooner.
    """

    def __init__(self, device: torch.device | str, priority: int = 0) -> None:
        on_gpu = torch.device(device).type == "cuda"
        self.stream = torch.cuda.Stream(device, priority=priority) if on_gpu else None
        self.forked = False

    def fork(self, starts_first: bool = False) -> AbstractContextManager[object]:
        """Send the context's work to this stream, after all that the current stream has been given.

        Parameters
        ----------
        starts_first
            Let the current stream wait until this one has come this far, so that a kernel that takes every
            multiprocessor does not start before the context's work and keep it waiting.
        """
        if self.stream is None:
            return nullcontext()
        self.forked = True
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        if starts_first:
            current.wait_event(self.stream.record_event())
        return torch.cuda.stream(self.stream)

    def resume(self) -> AbstractContextManager[object]:
        """Send the context's work to this stream, after what it has been given since it was forked."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def mark(self) -> torch.cuda.Event | None:
        """An event after this stream's work so far; None where work runs in line."""
        return None if self.stream is None else self.stream.record_event()

    def wait(self, mark: torch.cuda.Event | None) -> None:
        """Let the current stream wait for what `mark` marked, while this stream's later work goes on."""
        if mark is not None:
            torch.cuda.current_stream().wait_event(mark)

    def join(self) -> None:
        """Let the current stream wait for this stream's work, if it has any since the last join."""
        if self.stream is not None and self.forked:
            self.forked = False
            torch.cuda.current_stream().wait_stream(self.stream)
