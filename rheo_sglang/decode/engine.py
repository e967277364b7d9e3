"""DecodeEngine: the interface of what runs decode steps, and prefill passes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from rheo_kernels.types import UNSCALED, DecodeBatch, HitCounters, KVScales
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.variant import Variant
from rheo_sglang.page_table import PageTable
from rheo_sglang.prefill import Prefill, PrefillBatch, SeedAdmission
from rheo_sglang.prefill.calibrate import make_corrections
from rheo_sglang.readings import Readings
from rheo_sglang.recorder import Recorder
from rheo_sglang.traces import Tracer
from rheo_sglang.working_sets import WorkingSets

logger = logging.getLogger(__name__)

MissRoute = Literal["fetch", "cpu", "shared"]
"""Where misses are attended: read over the bus, by the CPU in host memory, or a part here and a part there."""


class CpuUse(NamedTuple):
    """Threads that attend misses on the CPU beside a GPU."""

    threads: int
    busy_seconds: float
    """What they took, all at once, since the start."""


@dataclass(frozen=True)
class EngineInputs:
    """What an engine is built from.

    Attributes
    ----------
    config
        Settings.
    table
        Page table: residency, summaries, tiering policy.
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]`` and ``[L, H, F, 2, D * P]``; where frames are on a GPU, ``host`` is
        pinned.
    heads
        Heads of this rank's loaded layers.
    page_size
        Tokens per page.
    req_to_token
        SGLang's token table, ``[R, context]``.
    context_len
        Most tokens of a request.
    recorder
        Counts hits, or None.
    cpu_attention
        Whether the C++ attention kernel works here.
    tracer
        Records every step's scores and selection, or None.
    counts_fetched
        Whether kernels count which misses are fetched, where they are shared with the CPU.
    scales
        Of every layer; empty where blocks hold K and V themselves.
    compute_dtype
        What attention computes in; the KV dtype by default.
    """

    config: RheoConfig
    table: PageTable
    host: torch.Tensor
    frames: torch.Tensor
    heads: HeadShape
    page_size: int
    req_to_token: torch.Tensor
    context_len: int
    recorder: Recorder | None
    cpu_attention: bool = True
    tracer: Tracer | None = None
    counts_fetched: bool = False
    scales: Sequence[KVScales] = ()
    compute_dtype: torch.dtype | None = None

    @property
    def computed_in(self) -> torch.dtype:
        """What attention computes in."""
        return self.compute_dtype or self.frames.dtype

    @cached_property
    def corrections(self) -> torch.Tensor | None:
        """Of estimates, ``[L, R, H, M]``, int8, see `rheo_kernels.types.Corrections`; None if there are to be none."""
        if not self.config.corrects_estimates(self.table.summary.name):
            return None
        shape = len(self.frames), len(self.req_to_token) - 1, self.heads.kv_heads
        codes = make_corrections(*shape, -(-self.context_len // self.page_size), self.frames.device)
        logger.info("rheo: corrections of estimates take %.2f GiB", codes.numel() / (1 << 30))
        return codes


class DecodeEngine(ABC):
    """Runs decode steps layer by layer, and prefill passes through `prefill`.

    A decode step is `settle`, `begin_step`, `forward` for every layer in order, `end_step`. Engines share the page
    table with its summary and tiering policy, the budget, `rheo_kernels.types.DecodeBatch` and
    `rheo_kernels.types.Selected`. After a step that selects they leave the same pages resident, up to ties between
    pages of equal worth, where they list the same runners-up and there are frames for all of these and the misses.

    Parameters
    ----------
    inputs
        What it is built from; its fields are attributes here.
    residency
        Gives pages frames.

    Attributes
    ----------
    variants
        Shapes that steps are captured in, the one for the least work first; empty if they are not captured.
    prefill
        Attends prompts.
    working_sets
        Counts which pages requests selected of late.
    readings
        What counters say, for those who look at the server.
    ended_by_model
        Whether `end_step` is called once the logits are launched. The last layer does it otherwise.
    latest
        Requests' rows of the token table and their pages, ``[B]`` each, of the pass that was begun last; None of one
        without requests.
    """

    variants: Sequence[Variant] = ()

    def __init__(self, inputs: EngineInputs, residency: SeedAdmission) -> None:
        self.config = inputs.config
        self.table = inputs.table
        self.host = inputs.host
        self.frames = inputs.frames
        self.heads = inputs.heads
        self.page_size = inputs.page_size
        self.req_to_token = inputs.req_to_token
        self.context_len = inputs.context_len
        self.recorder = inputs.recorder
        self.tracer = inputs.tracer
        self.scales = list(inputs.scales) or [UNSCALED] * len(inputs.frames)
        max_pages = -(-inputs.context_len // inputs.page_size)
        requests = inputs.req_to_token.shape[0]
        self.budget = inputs.config.budget_table(inputs.page_size, max_pages, inputs.frames.device, requests)
        self.prefill = Prefill(
            inputs.table,
            inputs.host,
            inputs.frames,
            inputs.page_size,
            residency,
            self.tracer,
            self.scales,
            inputs.computed_in,
            inputs.corrections,
        )
        rows = inputs.req_to_token.shape[0]
        self.working_sets = WorkingSets(inputs.table, inputs.config.working_set_steps, rows)
        self.readings = Readings(inputs.table, inputs.recorder, inputs.counts_fetched)
        self.ended_by_model = False
        self.latest: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    @abstractmethod
    def miss_route(self) -> MissRoute:
        """Where misses are attended."""
        ...

    @property
    @abstractmethod
    def variant(self) -> Variant:
        """Shape that the step runs in that was begun last."""
        ...

    def warm_up(self) -> None:
        """Do what the first requests would wait for otherwise; nothing by default."""
        return

    def reserve(self, max_batch: int) -> None:
        """Allocate what steps of up to ``max_batch`` requests need; nothing by default."""
        return

    @abstractmethod
    def settle(self) -> None:
        """Carry out what the scheduler noted since the last forward pass; before every forward pass."""
        ...

    def trace_notes(self) -> None:
        """Have a tracer take the step that ran last, and what the scheduler noted since."""
        if self.tracer is not None:
            self.tracer.settle(self.table.notes)

    def note_prefill(self) -> None:
        """Note that a prefill ran: the tail pages of its requests are in host pages only."""
        return

    def begin_prefill(
        self,
        rows: torch.Tensor,
        prefixes: Sequence[int],
        lengths: Sequence[int],
        slots: torch.Tensor,
        goes_on: bool,
        rids: Sequence[str] | None = None,
    ) -> PrefillBatch:
        """Begin a prefill pass, which `prefill` then runs layer by layer.

        Parameters
        ----------
        rows
            Requests' rows in the token table, ``[B]``.
        prefixes, lengths
            Tokens before each chunk and in it.
        slots
            Slots of the chunks' tokens, ``[T]``, int64.
        goes_on
            Whether the last request's prompt has more chunks to come.
        rids
            Ids of the requests, for a trace.
        """
        if self.tracer is not None:
            self.tracer.begin_prompts(rids or [str(row) for row in range(len(lengths))])
        self.table.note_summaries(slots, self.page_size)
        batch = self.prefill.describe(self.req_to_token, rows, prefixes, lengths, goes_on)
        self.table.list_pages(batch.pages, batch.num_pages)
        self.latest = rows, batch.num_pages
        self.prefill.begin(batch, self.budget.caps_of(rows, batch.num_pages), rows)
        self.note_prefill()
        return batch

    @abstractmethod
    def begin_step(
        self,
        rows: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        live: int,
        rids: list[str] | None,
        variant: Variant | None = None,
    ) -> None:
        """Describe one decode step's batch, and make its tail pages resident; outside the step's graph.

        Parameters
        ----------
        rows, seq_lens
            Requests' rows in the token table and their tokens with the new one, ``[B]``; those from ``live`` on are
            padding.
        seq_lens_cpu
            ``seq_lens`` on the host.
        live
            Requests.
        rids
            Their ids, for the recorder.
        variant
            Shape to use whatever the batch is, for a capture.
        """
        ...

    def _count_working_sets(
        self, batch: DecodeBatch, rids: list[str] | None, longest: int, rows: torch.Tensor | None
    ) -> None:
        """Count working sets now and then: of a described batch, its longest request's tokens, the recorder's rows."""
        counters = None
        if self.recorder is not None and rows is not None:
            counts = self.recorder.counts
            counters = HitCounters(counts.rates, counts.hits, counts.selected, rows)
        selects_all = -(-longest // self.page_size) <= self.budget.dense_pages
        self.working_sets.begin_step(batch, rids, selects_all, counters)

    @abstractmethod
    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """Run one layer of the step that was begun.

        Parameters
        ----------
        layer
            Layer index within this rank.
        q
            Queries, ``[B, Hq, D]``.
        k, v
            The new tokens' keys and values, ``[B, H, D]``; KV dtype, or the model's where that is of 8 bits.
        scale
            Softmax scale.
        out
            Attention output, ``[B, Hq, D]``, the model's dtype; written.
        """
        ...

    def end_step(self) -> None:
        """Wait for what a step leaves running, as late in it as may be; once more does no harm."""
        return

    def note_margins(self, logits: torch.Tensor) -> None:
        """Note how far the two most probable next tokens of each request are apart, if the settings ask for that.

        Parameters
        ----------
        logits
            Of the pass that was begun last, ``[B, V]``, padded rows included.
        """
        margins = self.budget.tensors.margins
        if margins is None or self.latest is None:
            return
        rows, num_pages = self.latest
        if len(logits) >= len(rows):
            self._note_margins(logits[: len(rows)], rows, num_pages, margins)

    @abstractmethod
    def _note_margins(
        self, logits: torch.Tensor, rows: torch.Tensor, num_pages: torch.Tensor, margins: torch.Tensor
    ) -> None:
        """See `rheo_kernels.reference.note_margins`."""
        ...

    @property
    def cpu_use(self) -> CpuUse | None:
        """What CPU threads did for misses so far; None where that is not measured. Waits for nothing."""
        return None

    def miss_report(self) -> dict[str, float] | None:
        """What misses took that are shared with the CPU; None if none are."""
        return None
