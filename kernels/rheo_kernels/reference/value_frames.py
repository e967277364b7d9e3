"""value_frames: what the page in each frame is worth, which is what admission weighs."""

from __future__ import annotations

import torch

from rheo_kernels.reference.admit import NEVER_EVICT
from rheo_kernels.types import IdleDecay


def value_frames(
    page_of: torch.Tensor,
    worth: torch.Tensor,
    unsaved: torch.Tensor,
    accessed: torch.Tensor | None = None,
    idle_decay: IdleDecay | None = None,
) -> torch.Tensor:
    """Value every frame by the page in it. A row is one KV head of one of ``L`` layers, ``R = L * H``.

    Parameters
    ----------
    page_of
        Page in each frame, ``[R, F]``, int32, -1 = free.
    worth
        What each page is worth, ``[R, N]``, float32.
    unsaved
        Pages without a complete host copy, ``[L, N]``, bool; their frames are pinned.
    accessed
        Accessed bits, ``[R, F]``, int8: frames that this step reads, pinned as well; cleared.
    idle_decay
        Decay of the worth of idle pages; none by default.

    Returns
    -------
    torch.Tensor
        ``[R, F]``, float32: ``-inf`` for a free frame, ``NEVER_EVICT`` for a pinned one.
    """
    page = page_of.clamp(min=0).long()
    values = worth.gather(1, page)
    if idle_decay is not None:
        idle = idle_decay.step - idle_decay.last_active[page]
        values = values * torch.pow(idle_decay.factor, idle)
    pinned = unsaved.repeat_interleave(page_of.shape[0] // unsaved.shape[0], 0).gather(1, page)
    if accessed is not None:
        pinned |= accessed.bool()
        accessed.zero_()
    return values.masked_fill(pinned, NEVER_EVICT).masked_fill(page_of < 0, -torch.inf)
