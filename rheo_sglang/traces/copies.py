"""Copies of tensors that a thread reads later, made without waiting for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Arrays = list[npt.NDArray[Any]]
Later = Callable[[], Arrays]
"""Waits for copies and returns them; called once, by whichever thread needs them."""
ALIGNMENT = 64


def copy(tensors: Sequence[torch.Tensor]) -> Later:
    """Copy tensors of any sizes to memory that is allocated for them."""
    if not any(tensor.is_cuda for tensor in tensors):
        arrays = [tensor.numpy().copy() for tensor in tensors]
        return lambda: arrays
    pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for target, tensor in zip(pinned, tensors, strict=True):
        target.copy_(tensor, non_blocking=True)
    event = torch.cuda.current_stream().record_event()

    def wait() -> Arrays:
        event.synchronize()
        return [target.numpy() for target in pinned]

    return wait


class Ring:
    """Pinned memory for the copies of a few steps, allocated once.

    Parameters
    ----------
    device
        Where the tensors are; on a CPU each copy has memory of its own.
    """

    MOST_SLOTS = 8

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._free: list[torch.Tensor] = []
        self._slot_bytes = 0
        self._lock = threading.Lock()

    def reserve(self, slot_bytes: int, most_bytes: int) -> None:
        """Have slots of at least ``slot_bytes``, at most ``most_bytes`` in all. Nobody is copying yet."""
        if self.device.type != "cuda" or slot_bytes <= self._slot_bytes:
            return
        self._slot_bytes = slot_bytes
        self._free = [
            torch.empty(slot_bytes, dtype=torch.uint8, pin_memory=True)
            for _ in range(self.slots(slot_bytes, most_bytes))
        ]

    @classmethod
    def slots(cls, slot_bytes: int, most_bytes: int) -> int:
        """How many slots of a size are had."""
        return min(most_bytes // slot_bytes, cls.MOST_SLOTS)

    def copy(self, tensors: Sequence[torch.Tensor]) -> Later | None:
        """Copy a step's tensors, contiguous ones; None if all slots are in use."""
        if self.device.type != "cuda":
            return copy(tensors)
        room = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
        with self._lock:
            if not self._free or sum(room) > self._slot_bytes:
                return None
            slot = self._free.pop()
        targets = [
            part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for part, tensor in zip(slot[: sum(room)].split(room), tensors, strict=True)
        ]
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor, non_blocking=True)
        event = torch.cuda.current_stream().record_event()

        def wait() -> Arrays:
            event.synchronize()
            arrays = [np.array(target.numpy()) for target in targets]
            with self._lock:
                if slot.numel() == self._slot_bytes:
                    self._free.append(slot)
            return arrays

        return wait
