"""DecodeBuffers: what the kernels of one decode step hand each other on every miss path, allocated once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from rheo_kernels.types import Admitted, DecodeBatch, Estimates, PrefixPairs, RunnersUp, Selected
from rheo_kernels.types.estimates import PAGES_PER_BLOCK
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.variant import Variant
from rheo_sglang.decode.workspace_room import WorkspaceRoom

MOST_CANDIDATES = 2048
"""Pages per KV head that one step considers for admission, misses first."""
MOST_RUNNERS_UP = 512
"""Runners-up of one layer that are considered, over all requests and KV heads."""
RUNNERS_UP_PER_LIST = 128
"""What a selection knows at most."""

Path = TypeVar("Path")
"""What a miss path needs for one batch size and variant."""
PathView = TypeVar("PathView", covariant=True)


class PathBuffers(Protocol[PathView]):
    """A miss path's own buffers for up to as many requests as the `DecodeBuffers` that hold them."""

    def views(self, batch: int, width: int) -> PathView:
        """The part of them that ``batch`` requests with lists of ``width`` pages use; the same memory every time."""
        ...


@dataclass(frozen=True)
class StepBuffers:
    """Views of the buffers for one batch size and variant: all that the dense shortcut needs.

    Attributes
    ----------
    variant
        The shape that they are for.
    batch
        The described batch.
    rows
        The recorder's row of each request, that of padding where there is none, ``[B]``, int64.
    workspace
        What the attention kernels need.
    """

    variant: Variant
    batch: DecodeBatch
    rows: torch.Tensor
    workspace: Any


@dataclass(frozen=True)
class SparseBuffers(StepBuffers, Generic[Path]):
    """Views of the buffers for a step that selects.

    Attributes
    ----------
    scores
        ``[B, H, M]``, float32.
    estimates
        What the scores are made of; None where the page summary estimates nothing.
    pairs
        Requests that begin with the same pages; None where estimates are not shared, and of a single request.
    pairing
        Scratch of what finds them.
    allowed
        Pages that may be selected, ``[B, H]``, int32, where scores may raise budgets.
    selected
        Resolved selection of every layer. One after the other use the same memory, but for the misses where their path
        keeps them.
    runners_up
        Of every layer, pages without a frame that the selection left out; None where the kernels list none.
    candidates, worth, num_candidates
        Pages offered frames, ``[H, C]``, int32 and float32, and how many, ``[H]``, int32.
    admitted
        Pages that got one, for every layer.
    path
        What the miss path needs.
    """

    scores: torch.Tensor
    estimates: Estimates | None
    pairs: PrefixPairs | None
    pairing: torch.Tensor
    allowed: torch.Tensor
    selected: Sequence[Selected]
    runners_up: Sequence[RunnersUp | None]
    candidates: torch.Tensor
    worth: torch.Tensor
    num_candidates: torch.Tensor
    admitted: Sequence[Admitted]
    path: Path


class DecodeBuffers(Generic[Path]):
    """Buffers for up to ``batch`` requests in any variant.

    Parameters
    ----------
    batch
        Most requests.
    variants
        Shapes to serve.
    heads
        Heads of this rank.
    frames
        Frames, ``[L, H, F, 2, D * P]``; the buffers live where they do.
    workspace
        Makes what the attention kernels need for a batch and a width, for the columns where the rest is attended, and
        on a device if it is to be on another than the frames'.
    path
        The miss path's own.
    keeps_misses
        Whether a layer's misses are read while later layers run.
    runners_up
        Whether the kernels list runners-up, and not every page has a frame anyway.
    estimates
        Whether scores are made of estimates.
    attends_tail
        Whether what a selection leaves out is attended by the estimates.
    pairs_requests
        Whether estimates are shared by requests that begin with the same pages.
    shares_workspaces
        Whether all batch sizes and variants share the workspaces' memory.
    device
        Where the buffers live instead.
    """

    def __init__(
        self,
        batch: int,
        variants: Sequence[Variant],
        heads: HeadShape,
        frames: torch.Tensor,
        workspace: Callable[..., Any],
        path: PathBuffers[Path],
        keeps_misses: bool,
        runners_up: bool,
        estimates: bool,
        attends_tail: bool,
        pairs_requests: bool = False,
        shares_workspaces: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.capacity = batch
        self.heads = heads
        self.workspace = workspace
        self.path = path
        self.layers, _, self.frames, _, _ = frames.shape
        columns, width = max(v.columns for v in variants), max(v.width for v in variants)
        kv = heads.kv_heads
        device = frames.device if device is None else device
        self.attends_tail = attends_tail
        self._workspaces: WorkspaceRoom | None = None
        if shares_workspaces:
            sizes = {*range(1, min(batch, 16)), *range(16, batch, 16), batch}
            shapes = (self._workspace(size, variant, "meta") for size in sizes for variant in variants)
            self._workspaces = WorkspaceRoom(shapes, device)
        self.described = DecodeBatch.allocate(batch, columns, device)

        def integers(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        self.rows = torch.zeros(batch, dtype=torch.int64, device=device)
        self.scores = floats(batch, kv, columns)
        self.estimates = Estimates.allocate(batch, kv * heads.group, columns, device) if estimates else None
        self.pairs = PrefixPairs.allocate(batch, device) if pairs_requests else None
        self.pairing = integers(batch * (batch + 1) if pairs_requests else 0)
        self.allowed = integers(batch, kv)
        copies = self.layers if keeps_misses else 1
        self.lists = integers(4, batch * kv * width)
        self.misses = integers(copies, batch * kv * width)
        self.counts = integers(copies, 2, batch * kv)
        self.runners_up = integers(self.layers, MOST_RUNNERS_UP if runners_up else 0)
        self.num_runners_up = integers(self.layers, batch * kv)
        room = self._room(batch, width)
        self.candidates = integers(kv * room)
        self.worth = floats(kv * room)
        self.num_candidates = integers(kv)
        self.admitted = integers(2, self.layers, kv * room)
        self.admitted_counts = integers(self.layers, kv)
        self._views: dict[tuple[int, Variant], StepBuffers] = {}

    def views(self, batch: int, variant: Variant) -> StepBuffers:
        """The part of the buffers that ``batch`` requests use in a variant; the same memory every time."""
        key = (batch, variant)
        if key not in self._views:
            self._views[key] = self._make_views(batch, variant)
        return self._views[key]

    def _room(self, batch: int, width: int) -> int:
        """``C``: pages of a KV head that are considered for admission."""
        return min(batch * (width + RUNNERS_UP_PER_LIST), self.frames, MOST_CANDIDATES)

    def _make_views(self, batch: int, variant: Variant) -> StepBuffers:
        columns = variant.columns
        described = DecodeBatch(
            self.described.pages[:batch, :columns], *(field[:batch] for field in self.described[1:])
        )
        rows = self.rows[:batch]
        if self._workspaces is None:
            workspace = self._workspace(batch, variant)
        else:
            workspace = self._workspaces.place(self._workspace(batch, variant, "meta"))
        if variant.dense:
            return StepBuffers(variant, described, rows, workspace)
        kv, width = self.heads.kv_heads, variant.width
        room = self._room(batch, width)
        return SparseBuffers(
            variant,
            described,
            rows,
            workspace,
            scores=self.scores[:batch, :, :columns],
            estimates=self._estimates(batch, columns),
            pairs=None if self.pairs is None or batch == 1 else self.pairs.views(batch),
            pairing=self.pairing,
            allowed=self.allowed[:batch],
            selected=self._selected(batch, width),
            runners_up=self._runners_up(batch),
            candidates=self.candidates[: kv * room].view(kv, room),
            worth=self.worth[: kv * room].view(kv, room),
            num_candidates=self.num_candidates,
            admitted=[
                Admitted(pages[: kv * room].view(kv, room), frames[: kv * room].view(kv, room), counts)
                for pages, frames, counts in zip(*self.admitted, self.admitted_counts, strict=True)
            ],
            path=self.path.views(batch, width),
        )

    def _workspace(self, batch: int, variant: Variant, *device: str) -> Any:
        """The workspace of ``batch`` requests in a variant; on the device ``meta`` its shape alone."""
        tail_width = variant.columns if self.attends_tail and not variant.dense else 0
        return self.workspace(batch, variant.width or variant.columns, tail_width, *device)

    def _estimates(self, batch: int, columns: int) -> Estimates | None:
        if self.estimates is None:
            return None
        queries, blocks = self.heads.kv_heads * self.heads.group, -(-columns // PAGES_PER_BLOCK)
        lse, block_lse = (flat.flatten() for flat in self.estimates)
        return Estimates(
            lse[: batch * queries * columns].view(batch, queries, columns),
            block_lse[: batch * queries * blocks].view(batch, queries, blocks),
        )

    def _selected(self, batch: int, width: int) -> list[Selected]:
        kv = self.heads.kv_heads
        pairs = batch * kv
        pages, hits, valid, indices = (flat[: pairs * width].view(batch, kv, width) for flat in self.lists)
        misses = self.misses[:, : pairs * width].view(-1, batch, kv, width)
        counts = self.counts[:, :, :pairs].view(-1, 2, batch, kv)
        return [
            Selected(pages, hits, misses[copy], valid, indices, counts[copy, 0], counts[copy, 1])
            for copy in (layer % len(misses) for layer in range(self.layers))
        ]

    def _runners_up(self, batch: int) -> list[RunnersUp | None]:
        kv = self.heads.kv_heads
        pairs = batch * kv
        most = min(self.runners_up.shape[1] // pairs, RUNNERS_UP_PER_LIST)
        if most == 0:
            return [None] * self.layers
        return [
            RunnersUp(pages[: pairs * most].view(batch, kv, most), counts[:pairs].view(batch, kv))
            for pages, counts in zip(self.runners_up, self.num_runners_up, strict=True)
        ]


class StagedPages:
    """Fetched pages of one layer that are kept on the device until they are admitted; misses beyond are not admitted.

    Parameters
    ----------
    batch
        Most requests.
    width
        Most columns of a list.
    frames
        Frames, ``[L, H, F, 2, D * P]``.
    device
        Where the pages are kept, if not where the frames are.
    """

    BYTES = 64 * 2**20

    def __init__(
        self, batch: int, width: int, frames: torch.Tensor, device: torch.device | str | None = None
    ) -> None:
        self.kv_heads, block = frames.shape[1], frames.shape[4]
        lists = batch * self.kv_heads
        blocks = min(lists * width, self.BYTES // (2 * block * frames.element_size()))
        device = frames.device if device is None else device
        self.blocks = torch.empty((max(blocks, lists), 2, block), dtype=frames.dtype, device=device)

    def views(self, batch: int, width: int) -> torch.Tensor:
        """Places of ``batch`` requests' lists: ``[B * H, places, 2, D * P]``."""
        lists = batch * self.kv_heads
        places = min(len(self.blocks) // lists, width)
        return self.blocks[: lists * places].unflatten(0, (lists, places))
