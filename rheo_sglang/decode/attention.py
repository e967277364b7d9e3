"""Attention: the kernels that select and attend the pages of a step on a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from rheo_kernels.types import UNSCALED, DecodeBatch, KVScales, Selected, Tail
from rheo_sglang.decode.heads import HeadShape

Workspace = TypeVar("Workspace")


class Attention(ABC, Generic[Workspace]):
    """Selects pages, and attends them in frames and in host memory.

    Parameters
    ----------
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]``, pinned, and ``[L, H, F, 2, D * P]``.
    heads
        Heads of this rank.
    page_size
        Tokens per page.
    scales
        Of every layer; those of V are applied here, and those of K are a part of softmax scales. 1 by default.
    compute_dtype
        Of queries and outputs; the KV dtype by default.

    Attributes
    ----------
    select_resolve
        See `rheo_kernels.triton.select_resolve`. Nothing may come between it and attention on its stream.
    lists_runners_up
        Whether it takes ``runners_up`` and lists them.
    """

    select_resolve: Callable[..., Selected]
    lists_runners_up: bool

    def __init__(
        self,
        host: torch.Tensor,
        frames: torch.Tensor,
        heads: HeadShape,
        page_size: int,
        scales: Sequence[KVScales] = (),
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.host = host
        self.frames = frames
        self.heads = heads
        self.page_size = page_size
        self.scales = scales or [UNSCALED] * len(frames)
        self.computed_in = compute_dtype or frames.dtype

    @abstractmethod
    def workspace(
        self, batch: int, width: int, tail_width: int = 0, device: torch.device | str | None = None
    ) -> Workspace:
        """Intermediate buffers for ``batch`` requests that select up to ``width`` pages, left out of ``tail_width``.

        Tensors in named tuples, where the frames are unless ``device`` says otherwise.
        """
        ...

    @abstractmethod
    def fetch(
        self,
        layer: int,
        selected: Selected,
        q: torch.Tensor,
        scale: float,
        workspace: Workspace,
        out: torch.Tensor,
        staged: torch.Tensor,
        tail: Tail | None = None,
    ) -> None:
        """Attend a step's hits, and its misses from host memory, keeping those that fit in ``staged``.

        Parameters
        ----------
        layer
            Layer index.
        selected
            Its selection.
        q
            Queries, ``[B, Hq, D]``.
        scale
            Softmax scale.
        workspace
            Buffers for this batch and width.
        out
            Attention output, ``[B, Hq, D]``, written.
        staged
            ``[B * H, places, 2, D * P]``: the first missed pages of each list are kept here.
        tail
            Attends the pages that are not selected, and counts the share of attention that the others have; None leaves
            them out.
        """
        ...

    @abstractmethod
    def dense(
        self,
        layer: int,
        batch: DecodeBatch,
        q: torch.Tensor,
        scale: float,
        workspace: Workspace,
        out: torch.Tensor,
        page_table: torch.Tensor,
        missed_at: torch.Tensor,
        now: torch.Tensor,
    ) -> None:
        """Attend all pages of every request, wherever they are.

        Parameters
        ----------
        layer, q, scale, workspace, out
            See `fetch`.
        batch
            The requests.
        page_table
            The layer's page table, ``[H, N]``, int32.
        missed_at, now
            Scalars, int32: ``missed_at`` becomes ``now`` if any page had no frame.
        """
        ...
