"""SideStream: work beside the main stream, forked and joined by events."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class SideStream:
    """A second stream of a GPU; on other devices, work in line.

    Parameters
    ----------
    device
        Where the work runs.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.stream = torch.cuda.Stream(device) if torch.device(device).type == "cuda" else None
        self.forked = False

    def fork(self) -> AbstractContextManager[object]:
        """Let the side stream go on from here; work inside the context goes to it."""
        if self.stream is None:
            return nullcontext()
        self.forked = True
        self.stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self.stream)

    def join(self) -> None:
        """Let the current stream wait for the side stream's work, if it has any since the last join."""
        if self.stream is not None and self.forked:
            self.forked = False
            torch.cuda.current_stream().wait_stream(self.stream)
