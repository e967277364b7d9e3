"""ReferenceDecodeEngine: decode steps with reference kernels, layer by layer and in line."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rheo_kernels import cpu, reference
from rheo_kernels.reference import (
    append,
    merge,
    note_margins,
    resolve,
    runners_up,
    save,
    stamp_selected,
    tail,
)
from rheo_kernels.types import DecodeBatch, Selected
from rheo_kernels.types.summary import EstimatingSummary
from rheo_sglang.decode.batch import build_decode_batch
from rheo_sglang.decode.engine import DecodeEngine, EngineInputs, MissRoute
from rheo_sglang.decode.reference_residency import ReferenceResidency
from rheo_sglang.decode.variant import Variant
from rheo_sglang.selection.selector import Selector

RUNNERS_UP = 64
"""Pages that a selection left out and that are looked at for frames, per request and KV head. CUDA C++ looks at about
48, at none where sink and window are all that is selected; Triton at none."""


@dataclass(frozen=True)
class ReferenceStep:
    """What the layers of one step share.

    Attributes
    ----------
    batch
        The described batch, without padded rows.
    rows
        The recorder's row of each request, ``[B]``, int64; empty without a recorder.
    variant
        Its shape.
    """

    batch: DecodeBatch
    rows: torch.Tensor
    variant: Variant


class ReferenceDecodeEngine(DecodeEngine):
    """Append, score, select, resolve, attend, merge, admit, on any device, one after the other.

    Misses are attended in their host pages, whatever the miss mode: on a CPU they are as near as frames.

    Parameters
    ----------
    inputs
        See `DecodeEngine`. C++ kernels estimate and attend where frames are on a CPU, the torch reference elsewhere.
    runners_up
        How many pages that a selection left out are looked at for frames, per request and KV head.
    """

    def __init__(self, inputs: EngineInputs, runners_up: int = RUNNERS_UP) -> None:
        self.residency = ReferenceResidency(inputs.table, inputs.host, inputs.frames)
        super().__init__(inputs, self.residency)
        config = inputs.config
        native = inputs.cpu_attention and inputs.frames.device.type == "cpu"
        self.attend = cpu.attend if native else reference.attend
        self.selector = Selector(
            inputs.table.summary,
            inputs.page_size,
            config.grouping,
            config.sink_pages,
            config.window_pages,
            self.budget,
            cpu.estimate if native else reference.estimate,
            config.residency_bonus,
        )
        self.num_runners_up = runners_up
        self.corrections = inputs.corrections
        self.step: ReferenceStep | None = None

    @property
    def miss_route(self) -> MissRoute:
        """See `DecodeEngine.miss_route`."""
        return "cpu" if self.frames.device.type == "cpu" else "fetch"

    @property
    def variant(self) -> Variant:
        """See `DecodeEngine.variant`; every step has a shape of its own, and none before the first."""
        return Variant(0, 0) if self.step is None else self.step.variant

    def settle(self) -> None:
        """See `DecodeEngine.settle`."""
        self.trace_notes()
        self.table.settle()

    def begin_step(
        self,
        rows: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        live: int,
        rids: list[str] | None,
        variant: Variant | None = None,
    ) -> None:
        """See `DecodeEngine.begin_step`; tail pages become resident layer by layer."""
        self.budget.settle()
        self.readings.begin_step(live)
        lengths = seq_lens_cpu[:live]
        longest = int(lengths.max())
        batch = build_decode_batch(
            self.req_to_token, rows[:live], seq_lens[:live], longest, self.page_size, self.budget
        )
        self.latest = batch.rows, batch.num_pages
        counted = torch.empty(0, dtype=torch.int64)
        if self.recorder is not None and rids is not None:
            counted = self.recorder.begin_step(rids, -(-lengths // self.page_size))
        shape = Variant(batch.pages.shape[1], self.budget.width(batch.pages.shape[1]))
        self.step = ReferenceStep(batch, counted, variant or shape)
        self.table.begin_step()
        self.table.note_summaries(batch.tail_pages.long() * self.page_size, self.page_size)
        self.table.list_pages(batch.pages, batch.num_pages)
        self._count_working_sets(batch, rids, longest, counted)
        self._trace_step(rids, lengths)

    def _trace_step(self, rids: list[str] | None, lengths: torch.Tensor) -> None:
        if self.tracer is not None:
            assert self.step is not None
            number, width = self.table.activity.steps, self.step.variant.width
            self.tracer.begin_step(number, rids, lengths, self.step.batch, width)

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """See `DecodeEngine.forward`."""
        step, table = self.step, self.table
        assert step is not None
        batch = step.batch
        live = batch.num_pages.shape[0]
        q = q[:live]
        scales = self.scales[layer]
        scale *= scales.k
        estimates = isinstance(table.summary, EstimatingSummary)
        if not estimates:
            self._append(layer, k[:live], v[:live], batch)
        growth = self.recorder.growth(layer, step.rows) if step.rows.numel() and self.recorder else None
        page_table = table.frame_of[layer]
        selection = self.selector(
            q,
            table.summaries[layer],
            batch,
            step.variant.width,
            scale,
            growth,
            page_table,
            None if self.corrections is None else self.corrections[layer],
        )
        if estimates:
            self._append(layer, k[:live], v[:live], batch)
        scores, indices, estimated = selection
        selected = resolve(indices, batch.pages, batch.seq_lens, page_table, self.page_size)
        stamp_selected(selected.pages, table.stamps[layer])
        left_out = runners_up(scores, indices, batch.pages, batch.num_pages, page_table, self.num_runners_up)
        if self.tracer is not None:
            self.tracer.layer(layer, scores, selected)
        table.policy.on_step(layer, scores, selected, batch.pages, batch.num_pages)
        attended, lse = self._attend(layer, q, selected, scale)
        output, coverage = attended, None
        if estimated is not None and self.config.tail:
            tail_out, tail_lse = self._attend_tail(layer, estimated, indices, batch)
            output, output_lse = merge(attended, lse, tail_out, tail_lse)
            coverage = 1 - (tail_lse - output_lse).exp().unflatten(1, (-1, self.heads.group)).mean(2)
        out[:live].copy_(output if scales.v == 1.0 else output * scales.v)
        out[live:].zero_()
        if step.rows.numel() and self.recorder is not None:
            self.recorder.count(layer, step.rows, selected.num_hits, selected.num_selected, coverage)
            if self.recorder.records_mass:
                mass = self._covered_mass(layer, q, indices, lse, batch, scale)
                self.recorder.cover(layer, step.rows, mass)
        self.residency.admit_missed(layer, selected, left_out)

    def _note_margins(
        self, logits: torch.Tensor, rows: torch.Tensor, num_pages: torch.Tensor, margins: torch.Tensor
    ) -> None:
        note_margins(logits, rows, num_pages, margins)

    def _append(self, layer: int, k: torch.Tensor, v: torch.Tensor, batch: DecodeBatch) -> None:
        table = self.table
        self.residency.claim(layer, batch.tail_pages)
        append(
            k,
            v,
            batch.tail_pages,
            batch.tail_offsets,
            table.frame_of[layer],
            self.frames[layer],
            table.summary,
            table.summaries[layer],
            self.page_size,
            self.scales[layer],
        )
        table.unsaved[layer, batch.tail_pages.long()] = batch.tail_pages > 0
        filled = batch.filled[batch.filled > 0].long()
        save(self.frames[layer], self.host[layer], table.frame_of[layer], filled)
        table.unsaved[layer, filled] = False

    def _attend(
        self, layer: int, q: torch.Tensor, selected: Selected, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over hits in their frames and misses in their host pages, and its LSE."""
        host, size = self.host[layer].transpose(0, 1), self.page_size
        hits = self.attend(q, self.frames[layer], selected.hits, selected.valid, scale, size)
        return merge(*hits, *self.attend(q, host, selected.misses, selected.valid, scale, size))

    def _attend_tail(
        self, layer: int, lse: torch.Tensor, indices: torch.Tensor, batch: DecodeBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to the pages left out, by their estimates ``lse``, and its LSE."""
        summary = self.table.summary
        assert isinstance(summary, EstimatingSummary)
        num_selected = (indices >= 0).sum(2, dtype=torch.int32)
        layout = summary.layout(self.heads.dim, self.page_size)
        summaries = self.table.summaries[layer, :, :, 0]
        return tail(lse, indices, num_selected, summaries, batch.pages, layout)

    def _covered_mass(
        self,
        layer: int,
        q: torch.Tensor,
        indices: torch.Tensor,
        lse: torch.Tensor,
        batch: DecodeBatch,
        scale: float,
    ) -> torch.Tensor:
        """Share of dense attention that the selection holds, ``[B, H]``, mean over the GQA group."""
        heads, width = indices.shape[1], batch.pages.shape[1]
        position = torch.arange(width, device=q.device, dtype=torch.int32)
        rest = position.expand(q.shape[0], heads, width)
        rest = rest.masked_fill(position >= batch.num_pages[:, None, None], -1)
        chosen = torch.zeros((*rest.shape[:2], width + 1), dtype=torch.bool, device=q.device)
        chosen.scatter_(2, indices.long() + 1, True)
        rest = rest.masked_fill(chosen[:, :, 1:], -1)
        found = resolve(rest, batch.pages, batch.seq_lens, self.table.frame_of[layer], self.page_size)
        _, rest_lse = self._attend(layer, q, found, scale)
        share = (lse - torch.logaddexp(lse, rest_lse)).exp()
        return share.view(q.shape[0], heads, -1).mean(2)
