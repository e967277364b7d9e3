"""PageSummary: what a page is summarised by, how its tokens are folded into it, and how it scores the page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch

from rheo_kernels.types.subcentroids import SubcentroidLayout


class SummaryKernels(NamedTuple):
    """Triton device functions of a summary (``@triton.jit``), from which ``append``, ``write`` and ``score`` are built.

    A function takes ``rows``, a pointer to the first of a page's ``R * W`` contiguous elements, and loads or stores
    them itself. ``DIM`` is the head dimension, ``BLOCK_D`` the next power of two; all capitals are constants.

    Attributes
    ----------
    fold_chunk
        ``(rows, keys, values, held, count, DIM, BLOCK_D, PAGE_SIZE)``: store the rows of a page that holds ``count``
        tokens. ``keys`` is ``[BLOCK_D, PAGE_SIZE]`` and ``values`` ``[PAGE_SIZE, BLOCK_D]``, of any floating dtype and
        undefined where ``held``, ``[PAGE_SIZE]``, is false. Values that are not used are not read.
    score
        ``(rows, queries, listed, heads, DIM, BLOCK_D) -> [BLOCK_G, BLOCK_M]``, float32: unscaled scores of pages for
        each query head of a group. ``rows``, ``[BLOCK_M, 1]``, are to be loaded where ``listed``, ``[BLOCK_M]``;
        ``queries`` are pointers ``[BLOCK_G, BLOCK_D]``, to be loaded where ``heads``, and after the rows: both are then
        on their way together. None in an `EstimatingSummary`.
    fold_token
        ``(rows, key, first, DIM, BLOCK_D)``: fold one key ``[BLOCK_D]`` into the stored rows; ``first`` restarts the
        page. Without it, a page is folded anew from what its frame holds, for every token: right for whatever would
        drift by being rounded again and again.
    score_sum
        ``(rows, queries, listed, heads, scale, DIM, BLOCK_D) -> [BLOCK_M]``: the sum of ``score`` over the group times
        ``scale``, where that is to be had in one product; otherwise scores are computed per head and averaged.
    """

    fold_chunk: Any
    score: Any = None
    fold_token: Any = None
    score_sum: Any = None


class PageSummary(ABC):
    """A kind of page summary; `rheo_sglang.selection.SUMMARIES` has all of them by name.

    Summaries of one layer are ``[H, N, R, W]``, contiguous in the last two dimensions: ``rows`` of ``row_width``
    elements for every KV head and logical page. A summary depends on the tokens in its page alone, not on how they
    came: folded token by token it is what it is folded at once, up to one rounding to its dtype and float32's in sums.

    Attributes
    ----------
    name
        Value of the setting ``summary``.
    rows
        ``R``.
    kernels
        Its part of the Triton kernels; None where it has none, which serves without a GPU alone.
    """

    name: ClassVar[str]
    rows: ClassVar[int]
    kernels: ClassVar[SummaryKernels | None] = None

    def row_width(self, head_dim: int, page_size: int) -> int:
        """``W``: elements of a row, the head dimension unless scales or codes are packed into it."""
        return head_dim

    def dtype(self, key_dtype: torch.dtype) -> torch.dtype:
        """Storage dtype: the one that keys are computed with, unless they are quantised."""
        return key_dtype

    def bytes_per_page(self, head_dim: int, page_size: int, key_dtype: torch.dtype) -> int:
        """Bytes of one page's summary in one layer and KV head."""
        return self.rows * self.row_width(head_dim, page_size) * self.dtype(key_dtype).itemsize

    def unsupported(self, head_dim: int, page_size: int, key_dtype: torch.dtype) -> str | None:
        """Why this combination is not served, as the end of a sentence; None if it is."""
        return None

    @abstractmethod
    def fold_chunk(self, keys: torch.Tensor, values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Summarise pages from all of their tokens.

        Parameters
        ----------
        keys
            ``[H, X, D, P]``, token-inner as in blocks; undefined from ``counts`` on.
        values
            ``[H, X, P, D]``; undefined from ``counts`` on.
        counts
            Tokens that each page holds, ``[X]``, int64, at least 1.

        Returns
        -------
        torch.Tensor
            ``[H, X, R, W]``; rounded to the storage dtype by whoever stores it, where it is wider.
        """

    def fold_token(self, rows: torch.Tensor, keys: torch.Tensor, first: torch.Tensor) -> torch.Tensor | None:
        """Fold one more key into each page's stored rows, where that is exact.

        Parameters
        ----------
        rows
            ``[H, X, R, W]``, storage dtype.
        keys
            ``[H, X, D]``.
        first
            Whether the key is the page's first, ``[X]``, bool; what the rows hold is then of another page.

        Returns
        -------
        torch.Tensor or None
            ``[H, X, R, W]``; None has the page folded anew from the tokens in its frame.
        """
        return None


class ScoringSummary(PageSummary):
    """A summary whose scores rank pages, and say no more."""

    @abstractmethod
    def score(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Score pages for every query head, before the softmax scale.

        Parameters
        ----------
        queries
            ``[B, H, G, D]``, float32 or float64.
        rows
            Summaries of the listed pages, ``[H, B, M, R, W]``, storage dtype.

        Returns
        -------
        torch.Tensor
            ``[B, H, G, M]``, the queries' dtype.
        """


class EstimatingSummary(PageSummary):
    """A summary that estimates the log-sum-exp of a page's logits, and holds the page's mean V.

    A page's score is its share of the estimated attention; what a selection leaves out can be attended by the
    estimates (the tail partial). One row of bytes, in a layout that the kernels ``estimate`` and ``tail`` know.
    """

    rows: ClassVar[int] = 1

    @abstractmethod
    def layout(self, head_dim: int, page_size: int) -> SubcentroidLayout:
        """Where the bytes of a row lie."""

    def row_width(self, head_dim: int, page_size: int) -> int:
        """``W``: bytes of a row."""
        return self.layout(head_dim, page_size).width

    def dtype(self, key_dtype: torch.dtype) -> torch.dtype:
        """Bytes."""
        return torch.uint8
