"""StepBuffers: where the layers of a decode step leave what they selected until it is copied to the host."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from rheo_kernels.types import Selected
from rheo_sglang.streams import SideStream

logger = logging.getLogger(__name__)

MOST_BYTES = 256 * 2**20
"""Most bytes of one step; longer ones are not traced."""


class StepArrays(NamedTuple):
    """One step's, for a batch of ``B``."""

    scores: torch.Tensor
    """``[L, B, H, M]``, float32."""
    selected: torch.Tensor
    """Indices into the page lists, hits first, ``[L, B, H, S]``, int32."""
    counts: torch.Tensor
    """Hits and selected pages, ``[L, 2, B, H]``, int32."""

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(array.nbytes for array in self)


def array_sizes(lists: int, columns: int, width: int) -> tuple[int, int, int]:
    """Elements of 4 bytes that `StepArrays` of so many lists have."""
    return lists * columns, lists * width, 2 * lists


def step_bytes(lists: int, columns: int, width: int) -> int:
    """Bytes of a step of so many lists, one for each layer, request and KV head; 0 of one that is not traced."""
    size = 4 * sum(array_sizes(lists, columns, width))
    return size if size <= MOST_BYTES else 0


class StepBuffers:
    """Memory for steps of several shapes, the same for each shape every time: graphs name it.

    Parameters
    ----------
    layers, kv_heads
        ``L`` and ``H``.
    device
        Where steps run.

    Attributes
    ----------
    stream
        Copies while the layer attends.
    """

    def __init__(self, layers: int, kv_heads: int, device: torch.device) -> None:
        self.layers = layers
        self.kv_heads = kv_heads
        self.device = device
        self.stream = SideStream(device)
        self._made: list[tuple[tuple[int, int, int], list[torch.Tensor]]] = []

    def reserve(self, batch: int, columns: int, width: int) -> None:
        """Allocate for up to ``batch`` requests of ``columns`` pages of which ``width`` are selected."""
        sizes = array_sizes(self.layers * batch * self.kv_heads, columns, width)
        if 4 * sum(sizes) > MOST_BYTES:
            logger.warning(
                "rheo: steps of %d requests of %d pages take %.1f GiB each and are not traced",
                batch,
                columns,
                4 * sum(sizes) / 2**30,
            )
            self._made.append(((batch, columns, width), []))
            return
        kinds = (torch.float32, torch.int32, torch.int32)
        flats = [
            torch.zeros(size, dtype=kind, device=self.device) for size, kind in zip(sizes, kinds, strict=True)
        ]
        self._made.append(((batch, columns, width), flats))

    def views(self, batch: int, columns: int, width: int) -> StepArrays | None:
        """The part that a shape uses; None if it is too large to be traced."""
        wanted = (batch, columns, width)
        fitting = (
            flats
            for room, flats in self._made
            if all(need <= have for need, have in zip(wanted, room, strict=True))
        )
        flats = next(fitting, None)
        if flats is None:
            self.reserve(batch, 2 * columns, 2 * width)
            flats = self._made[-1][1]
        if not flats:
            return None
        lists = (self.layers, batch, self.kv_heads)
        shapes = ((*lists, columns), (*lists, width), (self.layers, 2, batch, self.kv_heads))
        return StepArrays(
            *(
                flat[: torch.Size(shape).numel()].view(shape)
                for flat, shape in zip(flats, shapes, strict=True)
            )
        )

    def keep(self, arrays: StepArrays, layer: int, scores: torch.Tensor, selected: Selected) -> None:
        """Copy one layer's into a step's arrays; part of the step's graph."""
        with self.stream.fork():
            arrays.scores[layer].copy_(scores)
            arrays.selected[layer].copy_(selected.indices)
            arrays.counts[layer, 0].copy_(selected.num_hits)
            arrays.counts[layer, 1].copy_(selected.num_selected)
