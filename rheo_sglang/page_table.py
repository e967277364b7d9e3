"""PageTable: residency, summaries and importance of every logical page."""

from __future__ import annotations

from typing import Any

import torch

from rheo_kernels.reference import SUMMARY_ROWS
from rheo_sglang.tiering import Policy, make_policy


class PageTable:
    """Everything that is keyed by a logical page, except the page's K and V.

    Parameters
    ----------
    layers, kv_heads, head_dim
        Of this rank's part of the model.
    pages
        ``N``: logical pages, SGLang's padding page 0 included.
    frames
        ``F``: frames of each layer and KV head.
    summary
        Page summary, a key of ``SUMMARY_ROWS``.
    policy
        Name of the tiering policy that values resident pages.
    dtype, device
        Of the summaries; all tensors live on ``device``.

    Attributes
    ----------
    frame_of
        The page table: frame of each logical page or -1, ``[L, H, N]``, int32.
    page_of
        Its inverse: logical page in each frame or -1, ``[L, H, F]``, int32.
    unsaved
        Pages whose host copy lacks tokens that their frames hold, ``[L, N]``, bool. Their frames are pinned.
    summaries
        ``[L, H, N, R, D]``, ``dtype``; meaningful where ``described``.
    described
        Pages whose summary has been computed, ``[N]``, bool.
    importance
        ``[L, H, N]``, float32 in [0, 1].
    step, listed_at
        Decode steps so far, int32 scalar, and the one in which a running request last listed each page, ``[N]``,
        int32.
    described_tokens
        Keys folded into summaries since the start, counted once per token.

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
        pages: int,
        frames: int,
        summary: str,
        policy: str,
        dtype: torch.dtype,
        device: str | torch.device,
    ) -> None:
        self.frame_of = torch.full((layers, kv_heads, pages), -1, dtype=torch.int32, device=device)
        self.page_of = torch.full((layers, kv_heads, frames), -1, dtype=torch.int32, device=device)
        self.unsaved = torch.zeros((layers, pages), dtype=torch.bool, device=device)
        shape = (layers, kv_heads, pages, SUMMARY_ROWS[summary], head_dim)
        self.summaries = torch.zeros(shape, dtype=dtype, device=device)
        self.described = torch.zeros(pages, dtype=torch.bool, device=device)
        self.importance = torch.zeros((layers, kv_heads, pages), dtype=torch.float32, device=device)
        self.step = torch.zeros((), dtype=torch.int32, device=device)
        self.listed_at = torch.zeros(pages, dtype=torch.int32, device=device)
        self.policy: Policy = make_policy(policy, self)
        self.described_tokens = 0
        self._notes: list[tuple[str, tuple[torch.Tensor, ...]]] = []

    @property
    def pages(self) -> int:
        """``N``, the padding page included."""
        return self.frame_of.shape[2]

    @property
    def frames(self) -> int:
        """``F``, frames of each layer and KV head."""
        return self.page_of.shape[2]

    def release(self, pages: torch.Tensor) -> None:
        """Note that pages were freed: their frames, summaries and importance are to be reclaimed.

        Parameters
        ----------
        pages
            Logical pages, ``[X]``, integer.
        """
        self._notes.append(("release", (pages,)))

    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """Note that duplicate pages are about to be freed in favour of equal ones, which inherit importance.

        Parameters
        ----------
        duplicates, survivors
            Logical pages, pairwise, ``[X]``, integer.
        """
        self._notes.append(("fold", (duplicates, survivors)))

    def clear(self) -> None:
        """Note that every page was freed."""
        self._notes.append(("clear", ()))

    def settle(self) -> None:
        """Carry out what the scheduler noted since the last forward pass, in its order; never waits for a GPU."""
        notes, self._notes = self._notes, []
        for action, operands in notes:
            for operand in operands:
                if operand.is_cuda:
                    operand.record_stream(torch.cuda.current_stream())
            getattr(self, f"_{action}")(*operands)

    def _release(self, pages: torch.Tensor) -> None:
        rows = (self.frame_of.flatten(0, 1), self.page_of.flatten(0, 1), self.importance.flatten(0, 1))
        if self.frame_of.is_cuda:
            from rheo_kernels.triton import release
        else:
            from rheo_kernels.reference import release
        release(pages, *rows)
        pages = pages.long()
        self.unsaved.index_fill_(1, pages, False)
        self.described.index_fill_(0, pages, False)
        self.policy.reset(pages)

    def _fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        survivors, duplicates = survivors.long(), duplicates.long()
        pair = torch.maximum(self.importance[:, :, survivors], self.importance[:, :, duplicates])
        self.importance[:, :, survivors] = pair
        self.policy.fold(duplicates, survivors)

    def _clear(self) -> None:
        self._release(torch.arange(self.pages, device=self.frame_of.device))

    def describe(self, slots: torch.Tensor, page_size: int) -> None:
        """Note that this forward pass folds the keys of these tokens into their pages' summaries.

        Parameters
        ----------
        slots
            Slots of the new tokens, ``[T]``, int64.
        page_size
            Tokens per page.
        """
        self.described.index_fill_(0, slots // page_size, True)
        self.described_tokens += slots.numel()

    def list_pages(self, pages: torch.Tensor, num_pages: torch.Tensor) -> None:
        """Note the pages of the running requests, so that those of nobody can be told apart.

        Parameters
        ----------
        pages
            Page lists, ``[B, M]``, int32.
        num_pages
            Pages of each request, ``[B]``, int32.
        """
        position = torch.arange(pages.shape[1], device=pages.device)
        listed = pages.long().masked_fill(position >= num_pages[:, None], 0)
        self.listed_at[listed.flatten()] = self.step

    def node_importance(self, pages: torch.Tensor) -> torch.Tensor:
        """Importance of a radix node: the mean over its pages' rows.

        Parameters
        ----------
        pages
            The node's logical pages, ``[X]``, integer.

        Returns
        -------
        torch.Tensor
            Scalar, float32.
        """
        return self.importance[:, :, pages.long()].mean()

    def resident_share(self, pages: torch.Tensor) -> torch.Tensor:
        """Share of the pages' (layer, KV head) rows that have a frame: scalar, float32."""
        return (self.frame_of[:, :, pages.long()] >= 0).float().mean()

    def counters(self) -> dict[str, Any]:
        """What is in use; after all requests finished and the cache was flushed, all but the totals are 0.

        The padding page is not counted.
        """
        self.settle()
        layers, heads = self.frame_of.shape[:2]
        return {
            "pages_total": self.pages - 1,
            "frames_total": self.frames * layers * heads,
            "frames_used": int((self.page_of >= 0).sum()),
            "pages_resident": int((self.frame_of >= 0).any(0).any(0).sum()),
            "pages_unsaved": int(self.unsaved.any(0).sum()),
            "pages_described": int(self.described[1:].sum()),
            "pages_important": int((self.importance[:, :, 1:] > 0).any(0).any(0).sum()),
            "described_tokens": self.described_tokens,
        }

    def check(self) -> None:
        """Assert invariant 2 (frames and pages name each other), and that no unsaved page lacks a frame."""
        self.settle()
        layer, head, page = (self.frame_of >= 0).nonzero(as_tuple=True)
        frame = self.frame_of[layer, head, page].long()
        assert torch.equal(self.page_of[layer, head, frame].long(), page), "page_of is not frame_of's inverse"
        assert frame.numel() == int((self.page_of >= 0).sum()), "a frame holds a page that does not name it"
        layer, page = self.unsaved.nonzero(as_tuple=True)
        assert bool((self.frame_of[layer, :, page] >= 0).all()), "an unsaved page lost a frame"
