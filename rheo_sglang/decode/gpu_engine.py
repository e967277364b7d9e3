"""GpuDecodeEngine: decode steps on a GPU, prepared by the host and run without it."""

from __future__ import annotations

from typing import Any

import torch

from rheo_kernels.triton import allow, append, describe, note_margins, pair_prefixes, summarise_tails
from rheo_kernels.types import HitCounters, ResidencyBonus
from rheo_sglang.decode.buffers import DecodeBuffers, SparseBuffers, StepBuffers
from rheo_sglang.decode.engine import CpuUse, DecodeEngine, EngineInputs, MissRoute
from rheo_sglang.decode.gpu_residency import GpuResidency
from rheo_sglang.decode.make_attention import make_attention
from rheo_sglang.decode.make_miss_path import make_miss_path
from rheo_sglang.decode.scoring import make_scoring
from rheo_sglang.decode.variant import Variant, make_variants, pick_variant
from rheo_sglang.streams import SideStream


class GpuDecodeEngine(DecodeEngine):
    """Append, score, select, resolve, attend, merge, admit: launched one by one, or captured.

    `begin_step` runs before every step, outside the graph; it may look at what the host knows (lengths), never at what
    the GPU computed. `forward` runs one layer: fixed shapes, no allocation, no synchronisation.

    Side streams append the new token and send queries to the CPU while pages are scored (the tail page is selected
    whatever its score). They update the tiering policy, admit misses and fill frames while the layer attends and the
    next one computes its queries; the next layer's scores wait for them, since both use the same buffers. A frame that
    the step reads is pinned in it, and a frame that is filled is not read before the next step, which waits for that:
    what is filled is never read, and what is read is never filled.

    Where no request is longer than ``dense_threshold``, a step takes the *dense shortcut*: no selection, no admission,
    nothing for the tiering policy. The reference engine selects all pages instead.

    Parameters
    ----------
    inputs
        See `DecodeEngine`.
    """

    def __init__(self, inputs: EngineInputs) -> None:
        self.residency = GpuResidency(inputs.table, inputs.host, inputs.frames)
        super().__init__(inputs, self.residency)
        device = inputs.frames.device
        self.variants = make_variants(self.budget)
        self.append_stream = SideStream(device)
        self.last_layer = len(inputs.frames) - 1
        self.scoring = make_scoring(inputs)
        self.attention = make_attention(
            inputs.host, inputs.frames, inputs.heads, inputs.page_size, self.scales, inputs.computed_in
        )
        self.miss_path = make_miss_path(inputs, self.residency, self.attention)
        self.miss_path.fetched = self.readings.fetched
        self.missed_at = torch.zeros((), dtype=torch.int32, device=device)
        self.missed_seen = torch.zeros((), dtype=torch.int32, pin_memory=device.type == "cuda")
        self.misses_settled = 0
        self.fresh_tails = False
        self.pending_save: torch.Tensor | None = None
        self.step: StepBuffers | None = None
        self._buffers: list[DecodeBuffers[Any]] = []

    @property
    def variant(self) -> Variant:
        """See `DecodeEngine.variant`; the first one before any step."""
        return self.variants[0] if self.step is None else self.step.variant

    def warm_up(self) -> None:
        """Compile what prompts need."""
        self.prefill.warm_up(self.heads.group, -(-self.context_len // self.page_size))

    def reserve(self, max_batch: int) -> None:
        """Make the buffers of captured steps, once."""
        if all(buffers.capacity < max_batch for buffers in self._buffers):
            self._make_buffers(max_batch)

    def buffers(self, batch: int) -> DecodeBuffers[Any]:
        """Buffers for up to ``batch`` requests, the same ones every time: graphs that were captured name them.

        New ones are for twice as many as the last, so that a batch that grows request by request makes few; where they
        were planned, for as many as may run (`DecodeMemory`).
        """
        for buffers in self._buffers:
            if buffers.capacity >= batch:
                return buffers
        if self.config.plan_decode_buffers:
            batch = max(batch, self.req_to_token.shape[0])
        elif self._buffers:
            batch = max(batch, 2 * self._buffers[-1].capacity)
        return self._make_buffers(batch)

    def _make_buffers(self, batch: int) -> DecodeBuffers[Any]:
        path, width = self.miss_path, max(variant.width for variant in self.variants)
        all_fit = self.frames.shape[2] >= self.host.shape[1] - 1
        made = DecodeBuffers(
            batch,
            self.variants,
            self.heads,
            self.frames,
            self.attention.workspace,
            path.make_buffers(batch, width),
            path.keeps_misses,
            self.attention.lists_runners_up and not all_fit,
            self.scoring.estimates,
            self.scoring.attends_tail,
            self.scoring.pairs_requests,
            self.config.plan_decode_buffers,
        )
        self._buffers.append(made)
        if self.tracer is not None:
            self.tracer.reserve(batch, max(variant.columns for variant in self.variants), width)
        return made

    @property
    def miss_route(self) -> MissRoute:
        """See `DecodeEngine.miss_route`."""
        return self.miss_path.route

    @property
    def cpu_use(self) -> CpuUse | None:
        """See `DecodeEngine.cpu_use`."""
        return self.miss_path.cpu_use

    def miss_report(self) -> dict[str, float] | None:
        """See `DecodeEngine.miss_report`."""
        return self.miss_path.report()

    def settle(self) -> None:
        """Save the pages that the last step filled, and carry out what the scheduler freed since."""
        if self.pending_save is not None:
            self.residency.save(self.pending_save)
            self.pending_save = None
        self.trace_notes()
        self.table.settle()

    def note_prefill(self) -> None:
        """See `DecodeEngine.note_prefill`."""
        self.fresh_tails = True

    def begin_step(
        self,
        rows: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        live: int,
        rids: list[str] | None,
        variant: Variant | None = None,
    ) -> None:
        """See `DecodeEngine.begin_step`."""
        self.budget.settle()
        lengths = seq_lens_cpu[:live]
        longest = int(lengths.max()) if live else 0
        chosen = variant or self._pick(longest)
        self.step = step = self.buffers(rows.shape[0]).views(rows.shape[0], chosen)
        self.latest = step.batch.rows, step.batch.num_pages
        if live == 0:
            for field in step.batch:
                field.zero_()
            self._pair_requests(step)
            if self.recorder is not None:
                step.rows.fill_(self.recorder.padding_row)
            if self.tracer is not None:
                self.tracer.begin_step(0, None, lengths, step.batch, chosen.width)
            return
        table = self.table
        self.readings.begin_step(live)
        table.begin_step()
        describe(
            self.req_to_token,
            rows,
            seq_lens,
            live,
            self.page_size,
            self.budget.tensors,
            table.step,
            table.last_active,
            table.summarised,
            table.unsaved,
            step.batch,
        )
        self._pair_requests(step)
        table.total_summarised_tokens += live
        offsets = (lengths - 1) % self.page_size
        if self.fresh_tails or bool((offsets == 0).any()):
            self.residency.claim(step.batch.tail_pages, filled=self.fresh_tails)
            self.fresh_tails = False
        if bool((offsets == self.page_size - 1).any()):
            self.pending_save = step.batch.filled
        if self.recorder is not None and rids is not None and not chosen.dense:
            num_pages = -(-lengths // self.page_size)
            step.rows.copy_(self.recorder.begin_step(rids, num_pages, rows.shape[0]))
        self._count_working_sets(step.batch, rids, longest, None if chosen.dense else step.rows)
        if self.tracer is not None:
            self.tracer.begin_step(table.activity.steps, rids, lengths, step.batch, chosen.width)

    def _pair_requests(self, step: StepBuffers) -> None:
        """Find requests that begin with the same pages; none while graphs are captured, which compiles the kernels."""
        if isinstance(step, SparseBuffers) and step.pairs is not None:
            pair_prefixes(step.batch.pages, step.batch.past, self.page_size, step.pairing, step.pairs)

    def _pick(self, longest: int) -> Variant:
        """The shortcut for short requests, except now and then while their pages are not all resident."""
        self.missed_seen.copy_(self.missed_at, non_blocking=True)
        missed = int(self.missed_seen) > self.misses_settled
        variant = pick_variant(self.variants, -(-longest // self.page_size), dense=not missed)
        if missed:
            self.misses_settled = self.table.activity.steps + 1
        return variant

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """See `DecodeEngine.forward`."""
        step = self.step
        assert step is not None
        scale *= self.scales[layer].k
        if isinstance(step, SparseBuffers):
            self._forward_sparse(layer, step, q, k, v, scale, out)
        else:
            self._forward_dense(layer, step, q, k, v, scale, out)

    def _forward_dense(
        self,
        layer: int,
        step: StepBuffers,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        self._append(layer, step, k, v)
        if layer == self.last_layer:
            with self.append_stream.fork():
                self._summarise_tails(step)
        page_table, step_number = self.table.frame_of[layer], self.table.step
        self.attention.dense(
            layer, step.batch, q, scale, step.workspace, out, page_table, self.missed_at, step_number
        )
        self._end_with(layer)

    def _forward_sparse(
        self,
        layer: int,
        step: SparseBuffers[Any],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        # The score is launched first, so that what runs meanwhile takes no place from it.
        beside_scores = self.append_stream.fork()
        self.miss_path.join()
        if self.tracer is not None:
            self.tracer.join()
        self.scoring(layer, step, q, scale)
        with beside_scores:
            self.miss_path.send(layer, step, q, scale)
            if not self.scoring.estimates:
                self._append(layer, step, k, v)
        if self.scoring.estimates:
            with self.append_stream.fork():
                self._append(layer, step, k, v)
        stored = self.append_stream.mark()
        if layer == self.last_layer:
            with self.append_stream.resume():
                self._summarise_tails(step)
        self._select(layer, step)
        if self.tracer is not None:
            self.tracer.layer(layer, step.scores, step.selected[layer])
        self.miss_path.start(layer, step, q, scale)
        self.append_stream.wait(stored)
        self.miss_path.finish(layer, step, q, scale, out, self.scoring.tail(layer, step))
        self._end_with(layer)

    def _end_with(self, layer: int) -> None:
        """End the step with its last layer, unless the model does."""
        if layer == self.last_layer and not self.ended_by_model:
            self.end_step()

    def end_step(self) -> None:
        """See `DecodeEngine.end_step`."""
        self.append_stream.join()
        self.miss_path.end()
        if self.tracer is not None:
            self.tracer.join()

    def _note_margins(
        self, logits: torch.Tensor, rows: torch.Tensor, num_pages: torch.Tensor, margins: torch.Tensor
    ) -> None:
        note_margins(logits, rows, num_pages, margins)

    def _append(self, layer: int, step: StepBuffers, k: torch.Tensor, v: torch.Tensor) -> None:
        table, batch = self.table, step.batch
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

    def _summarise_tails(self, step: StepBuffers) -> None:
        """Of all layers at once, beside the end of the model: the next step's scores are the first to read them."""
        table, batch = self.table, step.batch
        summarise_tails(
            batch.tail_pages,
            batch.tail_offsets,
            table.frame_of.view(-1, table.frame_of.shape[2]),
            self.frames.view(-1, *self.frames.shape[2:]),
            table.summary,
            table.summaries.view(-1, *table.summaries.shape[2:]),
            self.heads.dim,
            self.page_size,
        )

    def _select(self, layer: int, step: SparseBuffers[Any]) -> None:
        config, batch, runners_up = self.config, step.batch, step.runners_up[layer]
        tail = self.scoring.tail(layer, step)
        self.attention.select_resolve(
            step.scores,
            batch.pages,
            batch.num_pages,
            batch.seq_lens,
            self._allowed(layer, step),
            self.table.frame_of[layer],
            self.page_size,
            config.sink_pages,
            config.window_pages,
            step.selected[layer],
            self.residency.accessed[layer],
            self._counters(layer, step),
            lse=None if tail is None else tail.lse,
            stamps=self.table.stamps[layer],
            bonus=ResidencyBonus(config.residency_bonus, batch.floor) if config.residency_bonus else None,
            **({} if runners_up is None else {"runners_up": runners_up}),
        )

    def _allowed(self, layer: int, step: SparseBuffers[Any]) -> torch.Tensor:
        """Pages that each request and KV head may select: the budget, unless scores may raise it."""
        batch, budget, config = step.batch, self.budget, self.config
        if not budget.reads_scores:
            return batch.budget[:, None].expand(-1, self.heads.kv_heads)
        return allow(
            budget.rule.allow_kernel,
            step.scores,
            batch.num_pages,
            batch.budget,
            batch.limit,
            batch.floor,
            config.sink_pages,
            config.window_pages,
            None if self.recorder is None else self.recorder.growth(layer, step.rows),
            step.allowed,
        )

    def _counters(self, layer: int, step: StepBuffers) -> HitCounters | None:
        if self.recorder is None:
            return None
        counts = self.recorder.counts
        return HitCounters(
            counts.rates[:, layer], counts.hits[:, layer], counts.selected[:, layer], step.rows
        )
