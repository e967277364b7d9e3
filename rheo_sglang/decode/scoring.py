"""Scoring: what pages are selected by on a GPU, and what is left to attend the others with."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any, ClassVar

import torch

from rheo_kernels import triton
from rheo_kernels.cuda import estimate as cuda
from rheo_kernels.types import Corrections, Coverage, Estimates, Tail
from rheo_kernels.types.summary import EstimatingSummary, ScoringSummary
from rheo_sglang.decode.buffers import SparseBuffers
from rheo_sglang.decode.engine import EngineInputs
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.page_table import PageTable

logger = logging.getLogger(__name__)


class Scoring(ABC):
    """Scores the pages of a layer.

    Parameters
    ----------
    table
        Knows the summaries.
    """

    estimates: ClassVar[bool] = False
    """Whether scores are made of estimates, `SparseBuffers.estimates`; the tail page's summary then decides which other
    pages are selected."""
    attends_tail = False
    """Whether what a selection leaves out is attended by the estimates."""
    pairs_requests = False
    """Whether requests that begin with the same pages, `SparseBuffers.pairs`, share the reading of their summaries."""

    def __init__(self, table: PageTable) -> None:
        self.table = table

    @abstractmethod
    def __call__(self, layer: int, step: SparseBuffers[Any], q: torch.Tensor, scale: float) -> None:
        """Write ``step.scores`` from queries ``[B, Hq, D]``."""
        ...

    def tail(self, layer: int, step: SparseBuffers[Any]) -> Tail | None:
        """What attention attends the pages with that are not selected; None has it leave them out."""
        return None


class SummaryScoring(Scoring):
    """By the summary's own score, its mean or its maximum over the GQA group."""

    def __init__(self, table: PageTable, summary: ScoringSummary, grouping: str) -> None:
        super().__init__(table)
        self.summary = summary
        self.grouping = grouping

    def __call__(self, layer: int, step: SparseBuffers[Any], q: torch.Tensor, scale: float) -> None:
        """See `Scoring`."""
        batch, summaries = step.batch, self.table.summaries[layer]
        triton.score(
            q, self.summary, summaries, batch.pages, batch.num_pages, scale, self.grouping, step.scores
        )


class EstimateScoring(Scoring):
    """By the logarithm of each page's share of the estimated attention to the tokens before this step's.

    The new token is appended after that, for its page is summarised anew as a whole: a summary that is half old, half
    new might estimate anything, and take the shares of all other pages.

    Parameters
    ----------
    table
        See `Scoring`.
    summary
        Its kind of summaries.
    kernels
        `rheo_kernels.cuda.estimate` or `rheo_kernels.triton`.
    heads
        Query and KV heads.
    page_size
        Tokens per page.
    attends_tail
        Whether what a selection leaves out is attended by the estimates.
    coverage
        The recorder's sums of the share of attention that selected pages have, ``[R, L, H]``, float32; None to count
        none.
    corrections
        Of all layers' estimates, ``[L, R, H, M]``, int8, or None.
    """

    estimates = True

    def __init__(
        self,
        table: PageTable,
        summary: EstimatingSummary,
        kernels: ModuleType,
        heads: HeadShape,
        page_size: int,
        attends_tail: bool,
        coverage: torch.Tensor | None,
        corrections: torch.Tensor | None,
    ) -> None:
        super().__init__(table)
        self.corrections = corrections
        self.layout = summary.layout(heads.dim, page_size)
        self.kernels = kernels
        self.pairs_requests = kernels is cuda and heads.group <= cuda.MOST_PAIRED_GROUP
        self.attends_tail = attends_tail
        self.coverage = coverage

    def __call__(self, layer: int, step: SparseBuffers[Any], q: torch.Tensor, scale: float) -> None:
        """See `Scoring`."""
        batch, estimates = step.batch, self._estimates(step)
        summaries = self.table.summaries[layer, :, :, 0]
        given = q, summaries, batch.pages, batch.past, scale, self.layout, estimates
        if self.pairs_requests:
            cuda.estimate(*given, step.pairs)
        else:
            self.kernels.estimate(*given)
        corrections = None if self.corrections is None else Corrections(self.corrections[layer], batch.rows)
        self.kernels.log_shares(estimates, batch.seq_lens, self.layout.page_size, step.scores, corrections)

    def tail(self, layer: int, step: SparseBuffers[Any]) -> Tail | None:
        """See `Scoring.tail`."""
        if not self.attends_tail:
            return None
        summaries = self.table.summaries[layer, :, :, 0]
        batch, coverage = step.batch, None
        if self.coverage is not None:
            coverage = Coverage(self.coverage[:, layer], step.rows)
        return Tail(self._estimates(step).lse, summaries, batch.pages, self.layout, batch.num_pages, coverage)

    @staticmethod
    def _estimates(step: SparseBuffers[Any]) -> Estimates:
        assert step.estimates is not None
        return step.estimates


def make_scoring(inputs: EngineInputs) -> Scoring:
    """Scoring for the page summary that was chosen, by the fastest kernels that serve the shape."""
    table, summary, config = inputs.table, inputs.table.summary, inputs.config
    if isinstance(summary, ScoringSummary):
        return SummaryScoring(table, summary, config.grouping)
    assert isinstance(summary, EstimatingSummary)
    page_size = inputs.page_size
    kernels: ModuleType = cuda
    layout, frames = summary.layout(inputs.heads.dim, page_size), inputs.frames
    reason = cuda.unsupported(layout, inputs.heads.group, inputs.computed_in, frames.device)
    if reason is not None:
        kernels = triton
        if frames.is_cuda:
            logger.info("rheo: pages are estimated in Triton, not in CUDA C++: %s", reason)
    coverage = None if inputs.recorder is None else inputs.recorder.counts.coverage
    return EstimateScoring(
        table, summary, kernels, inputs.heads, page_size, config.tail, coverage, inputs.corrections
    )
