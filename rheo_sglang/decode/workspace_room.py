"""WorkspaceRoom: memory that the workspaces of all batch sizes and variants share, since steps use them in turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

Workspace = TypeVar("Workspace", bound=Any)


class WorkspaceRoom:
    """Gives every workspace the same memory.

    Workspaces are named tuples of tensors; shapes of workspaces are such on the ``meta`` device.

    Parameters
    ----------
    shapes
        Workspaces to have room for.
    device
        Where the memory is.
    """

    def __init__(self, shapes: Iterable[Any], device: torch.device | str) -> None:
        largest: dict[int, torch.Tensor] = {}
        for shape in shapes:
            for index, tensor in enumerate(_tensors(shape)):
                if tensor.numel() >= largest.get(index, tensor).numel():
                    largest[index] = tensor
        self.flat = [
            torch.zeros(tensor.numel(), dtype=tensor.dtype, device=device) for tensor in largest.values()
        ]

    def place(self, shape: Workspace) -> Workspace:
        """A workspace of that shape; its tensors are zeros, or as the kernels of another workspace left them.

        One that is larger than there is room for gets new memory. What was given out stays where it is, for graphs were
        captured with it.
        """
        for index, tensor in enumerate(_tensors(shape)):
            if tensor.numel() > self.flat[index].numel():
                device = self.flat[index].device
                self.flat[index] = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=device)
        return _within(shape, iter(self.flat))


def _tensors(shape: Any) -> Iterator[torch.Tensor]:
    if isinstance(shape, torch.Tensor):
        yield shape
    else:
        for part in shape:
            yield from _tensors(part)


def _within(shape: Any, flat: Iterator[torch.Tensor]) -> Any:
    if isinstance(shape, torch.Tensor):
        return next(flat)[: shape.numel()].view(shape.shape)
    return type(shape)(*(_within(part, flat) for part in shape))
