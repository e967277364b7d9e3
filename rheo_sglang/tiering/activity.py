"""Activity: how many decode steps there were, and in which one each page was last listed by a running request."""

from __future__ import annotations

import torch


class Activity:
    """The step counter that policies and kernels share, and when each page was last in use.

    Parameters
    ----------
    pages
        ``N``: logical pages.
    device
        Where ``step`` and ``last_active`` live.

    Attributes
    ----------
    step
        Decode steps so far, scalar, int32; kernels read it.
    steps
        The same number on the host, so that nobody has to read it from the device.
    last_active
        Step in which a running request last listed each page, ``[N]``, int32.
    """

    def __init__(self, pages: int, device: str | torch.device) -> None:
        self.step = torch.zeros((), dtype=torch.int32, device=device)
        self.steps = 0
        self.last_active = torch.zeros(pages, dtype=torch.int32, device=device)

    def begin_step(self) -> None:
        """Count one more decode step, outside any graph."""
        self.steps += 1
        self.step += 1

    def list_pages(self, pages: torch.Tensor, num_pages: torch.Tensor) -> None:
        """Note the pages of the running requests.

        Parameters
        ----------
        pages
            Page lists, ``[B, M]``, int32.
        num_pages
            Pages of each request, ``[B]``, int32.
        """
        position = torch.arange(pages.shape[1], device=pages.device)
        listed = pages.long().masked_fill(position >= num_pages[:, None], 0)
        self.last_active[listed.flatten()] = self.step
