"""PageTable: residency, summaries and worth of every logical page."""

from __future__ import annotations

from typing import Any

import torch

from rheo_kernels.types import Stamps
from rheo_sglang.selection import SUMMARIES
from rheo_sglang.tiering import POLICIES, Activity, PolicyInputs, TieringPolicy

COUNTED = ("frames_used", "pages_resident", "pages_unsaved", "pages_summarised", "pages_important")
"""What `PageTable.count` counts."""


class PageTable:
    """Everything that is keyed by a logical page, except the page's K and V.

    Parameters
    ----------
    layers, kv_heads, head_dim
        Of this rank's part of the model.
    page_size
        Tokens per page.
    pages
        ``N``: logical pages, SGLang's padding page 0 included.
    frames
        ``F``: frames of each layer and KV head.
    summary
        Name of the page summary.
    policy
        Name of the tiering policy that values resident pages.
    dtype, device
        What attention computes in; all tensors live on ``device``.
    importance_alpha, prewarm
        See `PolicyInputs`.
    triton
        Whether pages are released and valued by Triton kernels; by default, on a GPU.

    Attributes
    ----------
    frame_of
        The page table: frame of each logical page or -1, ``[L, H, N]``, int32.
    page_of
        Its inverse: logical page in each frame or -1, ``[L, H, F]``, int32.
    unsaved
        Pages whose host copy lacks tokens that their frames hold, ``[L, N]``, bool. Their frames are pinned.
    summary
        Kind of the summaries.
    summaries
        ``[L, H, N, R, W]``, the summary's dtype; meaningful where ``summarised``.
    summarised
        Pages that have a summary, ``[N]``, bool.
    total_summarised_tokens
        Keys folded into summaries since the start, counted once per token; never falls.
    stamped
        Decode step in which each page was selected last, 0 = never, ``[L, H, N]``, int32.
    activity
        Decode steps so far, and when a running request last listed each page.
    policy
        Values pages; owns its state, which lives on ``device``.
    stamps
        What a layer's selection stamps its pages with, for every layer.

    Notes
    -----
    The scheduler frees and merges pages while a forward pass may still be running; it only notes so here
    (`release`, `fold`, `clear`), and the next forward pass carries it out in order (`settle`) before it touches
    any page. On a GPU that puts all writes to these tensors on one stream.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        pages: int,
        frames: int,
        summary: str,
        policy: str,
        dtype: torch.dtype,
        device: str | torch.device,
        importance_alpha: float = 0.3,
        triton: bool | None = None,
        prewarm: float = 0.0,
    ) -> None:
        self.frame_of = torch.full((layers, kv_heads, pages), -1, dtype=torch.int32, device=device)
        self.page_of = torch.full((layers, kv_heads, frames), -1, dtype=torch.int32, device=device)
        self.unsaved = torch.zeros((layers, pages), dtype=torch.bool, device=device)
        self.summary = kind = SUMMARIES[summary]()
        shape = (layers, kv_heads, pages, kind.rows, kind.row_width(head_dim, page_size))
        self.summaries = torch.zeros(shape, dtype=kind.dtype(dtype), device=device)
        self.summarised = torch.zeros(pages, dtype=torch.bool, device=device)
        self.total_summarised_tokens = 0
        self.stamped = torch.zeros_like(self.frame_of)
        self.activity = Activity(pages, device)
        self.triton = torch.device(device).type == "cuda" if triton is None else triton
        inputs = PolicyInputs(layers, kv_heads, pages, self.activity, importance_alpha, self.triton, prewarm)
        self.policy: TieringPolicy = POLICIES[policy](inputs)
        self.stamps = [Stamps(self.step, layer) for layer in self.stamped]
        self._notes: list[tuple[str, tuple[torch.Tensor, ...]]] = []

    @property
    def step(self) -> torch.Tensor:
        """Decode steps so far, scalar, int32."""
        return self.activity.step

    @property
    def last_active(self) -> torch.Tensor:
        """Step in which a running request last listed each page, ``[N]``, int32."""
        return self.activity.last_active

    @property
    def pages(self) -> int:
        """``N``, the padding page included."""
        return self.frame_of.shape[2]

    @property
    def frames(self) -> int:
        """``F``, frames of each layer and KV head."""
        return self.page_of.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that it keeps of pages and frames."""
        owners = (self, self.activity, self.policy)
        kept = [value for owner in owners for value in vars(owner).values()]
        kept += [value for values in kept if isinstance(values, list) for value in values]
        return sum(value.nbytes for value in kept if isinstance(value, torch.Tensor))

    def release(self, pages: torch.Tensor) -> None:
        """Note that pages were freed: their frames, summaries and worth are to be reclaimed.

        Parameters
        ----------
        pages
            Logical pages, ``[X]``, integer.
        """
        self._notes.append(("release", (pages,)))

    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """Note that duplicate pages are about to be freed in favour of equal ones, which inherit worth and stamps.

        Parameters
        ----------
        duplicates, survivors
            Logical pages, pairwise, ``[X]``, integer.
        """
        self._notes.append(("fold", (duplicates, survivors)))

    def clear(self) -> None:
        """Note that every page was freed."""
        self._notes.append(("clear", ()))

    def restore(self, pages: torch.Tensor, summaries: torch.Tensor, worth: torch.Tensor) -> None:
        """Note that pages came back from storage, with what they were summarised by and worth.

        Parameters
        ----------
        pages
            Logical pages, ``[X]``, int64. Nobody else uses them yet.
        summaries
            Their summaries, ``[L, H, X, R, W]``, on the host or the device.
        worth
            What they are worth, ``[L, H, X]``, float32.
        """
        self._notes.append(("restore", (pages, summaries, worth)))

    @property
    def notes(self) -> list[tuple[str, tuple[torch.Tensor, ...]]]:
        """What `settle` will carry out: ``release``, ``fold``, ``clear`` or ``restore``, and the pages."""
        return self._notes

    def settle(self) -> None:
        """Carry out what the scheduler noted since the last forward pass, in its order; never waits for a GPU."""
        notes, self._notes = self._notes, []
        for action, operands in notes:
            for operand in operands:
                if operand.is_cuda:
                    operand.record_stream(torch.cuda.current_stream())
            getattr(self, f"_{action}")(*operands)

    def _release(self, pages: torch.Tensor) -> None:
        if self.triton:
            from rheo_kernels.triton import release
        else:
            from rheo_kernels.reference import release
        release(pages, self.frame_of.flatten(0, 1), self.page_of.flatten(0, 1))
        pages = pages.long()
        self.unsaved.index_fill_(1, pages, False)
        self.summarised.index_fill_(0, pages, False)
        self.stamped.index_fill_(2, pages, 0)
        self.policy.release(pages)

    def _fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        duplicates, survivors = duplicates.long(), survivors.long()
        latest = torch.maximum(self.stamped[:, :, survivors], self.stamped[:, :, duplicates])
        self.stamped[:, :, survivors] = latest
        self.policy.fold(duplicates, survivors)

    def _restore(self, pages: torch.Tensor, summaries: torch.Tensor, worth: torch.Tensor) -> None:
        device = self.summaries.device
        self.summaries[:, :, pages] = summaries.to(device, non_blocking=True)
        self.summarised.index_fill_(0, pages, True)
        self.policy.restore(pages, worth.to(device, non_blocking=True))

    def _clear(self) -> None:
        self._release(torch.arange(self.pages, device=self.frame_of.device))

    def begin_step(self) -> None:
        """Count one more decode step; before it, and outside its graph."""
        self.activity.begin_step()
        self.policy.begin_step()

    def note_summaries(self, slots: torch.Tensor, page_size: int) -> None:
        """Note that this forward pass folds the keys of these tokens into their pages' summaries.

        Parameters
        ----------
        slots
            Slots of the new tokens, ``[T]``, int64.
        page_size
            Tokens per page.
        """
        self.summarised.index_fill_(0, slots // page_size, True)
        self.total_summarised_tokens += slots.numel()

    def list_pages(self, pages: torch.Tensor, num_pages: torch.Tensor) -> None:
        """Note the pages of the running requests; see `Activity.list_pages`."""
        self.activity.list_pages(pages, num_pages)

    def freed(self, pages: torch.Tensor) -> torch.Tensor:
        """Which of some pages, ``[X]``, int64, the scheduler freed since the last forward pass: ``[X]``, bool.

        A page that was handed out again in between is one of them: nothing has used it yet.
        """
        freed = torch.zeros_like(pages, dtype=torch.bool)
        for action, operands in self._notes:
            if action == "clear":
                return torch.ones_like(freed)
            if action == "release":
                freed |= torch.isin(pages, operands[0].long())
        return freed

    def counters(self) -> dict[str, Any]:
        """What is in use; after all requests finished and the cache was flushed, all but the totals are 0.

        Totals have ``total`` in their names. The padding page is not counted. Nothing is changed: what the scheduler
        noted since the last forward pass counts as carried out, but is left to the next one.
        """
        layers, heads = self.frame_of.shape[:2]
        counted = dict(zip(COUNTED, self.count().tolist(), strict=True))
        return {
            "pages_total": self.pages - 1,
            "frames_total": self.frames * layers * heads,
            **counted,
            "total_summarised_tokens": self.total_summarised_tokens,
        }

    def count(self) -> torch.Tensor:
        """The numbers of `COUNTED`, ``[5]``, int64, on the device, which nothing waits for; see `counters`."""
        freed, important, summarised = self._noted()
        held = ~freed
        taken = self.page_of >= 0
        if self._notes:
            taken &= held[self.page_of.clamp(min=0).long()]
        resident = self.frame_of.flatten(0, 1).amax(0) >= 0
        pages = (held & resident, held & self.unsaved.any(0), summarised, important)
        return torch.stack([taken.sum(), *(marked[1:].sum() for marked in pages)])

    def _noted(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pages that notes free, and those worth more than 0 and summarised after them, all ``[N]``, bool."""
        freed, summarised = torch.zeros_like(self.summarised), self.summarised.clone()
        important = self.policy.worth.flatten(0, 1).amax(0) > 0
        for action, operands in self._notes:
            if action == "fold":
                duplicates, survivors = (operand.long() for operand in operands)
                important[survivors] |= important[duplicates]
            elif action == "restore":
                pages, _, worth = operands
                important[pages] = (worth > 0).any(0).any(0).to(important.device)
                summarised[pages] = True
            else:
                gone = operands[0].long() if action == "release" else slice(None)
                freed[gone] = True
                important[gone] = summarised[gone] = False
        return freed, important, summarised

    def check(self) -> None:
        """Assert invariant 2 (frames and pages name each other), and that no unsaved page lacks a frame.

        Nothing is changed: both hold whatever the scheduler noted since the last forward pass.
        """
        layer, head, page = (self.frame_of >= 0).nonzero(as_tuple=True)
        frame = self.frame_of[layer, head, page].long()
        assert torch.equal(self.page_of[layer, head, frame].long(), page), "page_of is not frame_of's inverse"
        assert frame.numel() == int((self.page_of >= 0).sum()), "a frame holds a page that does not name it"
        layer, page = self.unsaved.nonzero(as_tuple=True)
        assert bool((self.frame_of[layer, :, page] >= 0).all()), "an unsaved page lost a frame"
