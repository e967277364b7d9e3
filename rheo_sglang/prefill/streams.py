"""CopyStream: copies that run beside the main stream's compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

HIGH_PRIORITY = -1
"""Copies need few multiprocessors, but need them at once."""


class CopyStream:
    """A stream of high priority on a GPU; elsewhere, work in line.

    Parameters
    ----------
    device
        Where the copies begin or end.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device, priority=HIGH_PRIORITY) if device.type == "cuda" else None

    def fork(self, ahead: bool = False) -> AbstractContextManager:
        """Send the context's work to this stream, after all that the main stream has been given.

        Parameters
        ----------
        ahead
            Let the main stream wait until this one has come this far, so that a kernel that takes every
            multiprocessor does not start before the context's work and keep it waiting.
        """
        if self.stream is None:
            return nullcontext()
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        if ahead:
            main.wait_event(self.stream.record_event())
        return torch.cuda.stream(self.stream)

    def mark(self) -> torch.cuda.Event | None:
        """An event after this stream's work so far; None where work runs in line."""
        return None if self.stream is None else self.stream.record_event()

    def join(self) -> None:
        """Let the main stream wait for this stream's work so far."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
