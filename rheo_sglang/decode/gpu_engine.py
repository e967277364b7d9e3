"""CudaDecode: decode steps on a GPU, prepared by the host and run without it."""

from __future__ import annotations

import logging

import torch

from rheo_kernels.triton import (
    allow,
    append,
    describe,
    score,
)
from rheo_kernels.types import HitCounters
from rheo_sglang.budget import BudgetTable
from rheo_sglang.config import RheoConfig
from rheo_sglang.cpu_offload.cores import keep_to_spare_cores
from rheo_sglang.cpu_offload.cpu_attention import CpuAttention, default_cpu_threads
from rheo_sglang.cpu_offload.service import CpuService, miss_report
from rheo_sglang.decode.attention import CudaAttention, make_attention
from rheo_sglang.decode.buffers import DecodeBuffers, StepBuffers
from rheo_sglang.decode.costs import ALL_ON_CPU, measure_costs, only_cpu
from rheo_sglang.decode.gpu_residency import CudaResidency
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.misses import Both, Fetch, MissPath, Split
from rheo_sglang.decode.streams import SideStream
from rheo_sglang.decode.variant import Variant, make_variants, pick_variant
from rheo_sglang.page_table import PageTable
from rheo_sglang.recorder import Recorder

logger = logging.getLogger(__name__)


class CudaDecode:
    """Append, score, select, resolve, attend, merge, admit: launched one by one, or captured.

    `prepare` runs before every step, outside the graph; it may look at what the host knows (lengths), never at what
    the GPU computed. A call of the object runs one layer: fixed shapes, no allocation, no synchronisation.

    Side streams append the new token and send queries to the CPU while pages are scored (the tail page is selected
    whatever its score), and update importance, admit misses and fill frames behind the layers' work; the next layer's
    scores wait for them, since both use the same buffers. A frame that the step reads is pinned in it, and a frame that
    is filled is not read before the next step, which waits for that: what is filled is never read, and what is read is
    never filled.

    Parameters
    ----------
    config
        Settings.
    table
        Page table.
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]``, pinned, and ``[L, H, F, 2, D * P]``.
    heads
        Heads of this rank.
    req_to_token
        SGLang's token table, ``[R, context]``.
    budget
        Pages that requests may select; its caps live where the frames do.
    recorder
        Counts hits, or None.
    cpu_attention
        Whether the C++ kernel works here; misses are fetched otherwise.

    Attributes
    ----------
    ended_by_model
        Whether `end_step` is called behind the model's logits. The last layer waits otherwise.
    """

    def __init__(
        self,
        config: RheoConfig,
        table: PageTable,
        host: torch.Tensor,
        frames: torch.Tensor,
        heads: HeadShape,
        req_to_token: torch.Tensor,
        budget: BudgetTable,
        recorder: Recorder | None,
        cpu_attention: bool = True,
    ) -> None:
        self.config = config
        self.table = table
        self.host = host
        self.frames = frames
        self.heads = heads
        self.req_to_token = req_to_token
        self.page_size = budget.page_size
        self.budget = budget
        self.recorder = recorder
        self.residency = CudaResidency(table, host, frames)
        self.variants = make_variants(budget)
        device = frames.device
        self.appending, self.behind = SideStream(device), SideStream(device)
        self.attention = make_attention(host, frames, heads, self.page_size)
        self.missed_at = torch.zeros((), dtype=torch.int32, device=device)
        self.missed_seen = torch.zeros((), dtype=torch.int32, pin_memory=device.type == "cuda")
        self.steps = 0
        self.misses_settled = 0
        self.fresh_tails = False
        self.pending_save: torch.Tensor | None = None
        self.ended_by_model = False
        self.all_fit = frames.shape[2] >= host.shape[1] - 1
        self.step: StepBuffers | None = None
        self._buffers: list[DecodeBuffers] = []
        self.misses = self._miss_path(cpu_attention)(self.residency, self.attention, self.behind)
        self.costs: torch.Tensor | None = None

    def _miss_path(self, cpu_attention: bool) -> type[MissPath]:
        """Where misses are attended: `RheoConfig.miss_mode`, as far as device, shape and processor allow."""
        mode, on_gpu = self.config.miss_mode, self.frames.device.type == "cuda"
        if not cpu_attention and mode == "split":
            logger.warning(
                "rheo: miss_mode='split' needs CPU attention; misses are fetched (miss_mode='fetch')"
            )
        if not cpu_attention or mode == "fetch" or (mode == "auto" and self.all_fit):
            return Fetch
        if isinstance(self.attention, CudaAttention):
            return Both
        return Split if mode == "split" or not on_gpu else Fetch

    def reserve(self, batch: int) -> DecodeBuffers:
        """Buffers for up to ``batch`` requests, the same ones every time: graphs that were captured name them."""
        for buffers in self._buffers:
            if buffers.capacity >= batch:
                return buffers
        cpu = service = None
        if isinstance(self.misses, Split | Both):
            cpu = CpuAttention(
                self.host,
                batch,
                self.heads.group,
                max(variant.width for variant in self.variants),
                self.page_size,
                self.config.cpu_threads or default_cpu_threads(),
                self.frames.device.type == "cuda",
            )
        if isinstance(self.misses, Both):
            assert cpu is not None
            service, cpu = self._serve(cpu), None
        workspace = self.attention.workspace
        self._buffers.append(
            DecodeBuffers(
                batch,
                self.variants,
                self.heads,
                self.frames,
                workspace,
                cpu,
                service,
                self.attention.lists_runners_up and not self.all_fit,
            )
        )
        return self._buffers[-1]

    def _serve(self, cpu: CpuAttention) -> CpuService:
        """Start the CPU's side; the costs that partition misses are measured the first time."""
        assert isinstance(self.attention, CudaAttention)
        costs = self.costs
        if costs is None:
            keep_to_spare_cores(cpu.threads)
            costs = self.costs = torch.tensor(ALL_ON_CPU, dtype=torch.float32, device=self.frames.device)
        service = CpuService(cpu, len(self.frames), self.table.step, costs)
        if not self._buffers:
            measured = measure_costs(self.attention, service, self.heads)
            costs.copy_(torch.tensor(only_cpu(measured) if self.config.miss_mode == "split" else measured))
        return service

    def miss_report(self) -> dict[str, float] | None:
        """What misses took that are shared with the CPU, see `miss_report`; None if none are."""
        services = [buffers.service for buffers in self._buffers if buffers.service is not None]
        return miss_report(services) if services else None

    def settle(self) -> None:
        """Save the pages that the last step filled, and carry out what the scheduler freed since."""
        if self.pending_save is not None:
            self.residency.save(self.pending_save)
            self.pending_save = None
        self.table.settle()

    def note_prefill(self) -> None:
        """Note that a prefill ran: the tail pages of its requests are in host pages only."""
        self.fresh_tails = True

    def prepare(
        self,
        slots: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        live: int,
        rids: list[str] | None,
        variant: Variant | None = None,
    ) -> Variant:
        """Describe one step's batch, and make its tail pages resident.

        Parameters
        ----------
        slots, seq_lens
            Requests' rows in the token table and their tokens with the new one, ``[B]``; rows from ``live`` on are
            padding.
        seq_lens_cpu
            ``seq_lens`` on the host.
        live
            Requests.
        rids
            Their ids, for the recorder.
        variant
            Shape to use whatever the batch is, for a capture.

        Returns
        -------
        Variant
            The shape that the step runs in.
        """
        lengths = seq_lens_cpu[:live]
        longest = int(lengths.max()) if live else 0
        chosen = variant or self._pick(longest)
        self.step = step = self.reserve(slots.shape[0]).views(slots.shape[0], chosen)
        if live == 0:
            for field in step.batch:
                field.zero_()
            return chosen
        self.steps += 1
        self.table.begin_step()
        describe(
            self.req_to_token,
            slots,
            seq_lens,
            live,
            self.page_size,
            self.budget.caps,
            self.table.step,
            self.table.last_active,
            self.table.summarised,
            self.table.unsaved,
            step.batch,
        )
        self.table.total_summarised_tokens += live
        offsets = (lengths - 1) % self.page_size
        if self.fresh_tails or bool((offsets == 0).any()):
            self.residency.claim(step.batch.tail_pages, filled=self.fresh_tails)
            self.fresh_tails = False
        if bool((offsets == self.page_size - 1).any()):
            self.pending_save = step.batch.filled
        if self.recorder is not None and rids is not None and not chosen.dense:
            step.rows[:live].copy_(self.recorder.begin_step(rids, -(-lengths // self.page_size)))
        return chosen

    def _pick(self, longest: int) -> Variant:
        """The shortcut for short requests, except now and then while their pages are not all resident."""
        self.missed_seen.copy_(self.missed_at, non_blocking=True)
        missed = int(self.missed_seen) > self.misses_settled
        variant = pick_variant(self.variants, -(-longest // self.page_size), dense=not missed)
        if missed:
            self.misses_settled = self.steps + 1
        return variant

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        """Run one layer of the prepared step.

        Parameters
        ----------
        layer
            Layer index within this rank.
        q
            Queries, ``[B, Hq, D]``.
        k, v
            The new tokens' keys and values, ``[B, H, D]``.
        scale
            Softmax scale.
        out
            Attention output, ``[B, Hq, D]``, the model's dtype; written.
        """
        step, table, page_size = self.step, self.table, self.page_size
        assert step is not None
        batch, frames, page_table = step.batch, self.frames[layer], table.frame_of[layer]
        # The score is launched first, so that what runs beside it takes no place from it.
        beside = self.appending.fork()
        if not step.variant.dense:
            self.misses.join()
            self._score(layer, step, q, scale)
        with beside:
            append(
                k,
                v,
                batch.tail_pages,
                batch.tail_offsets,
                page_table,
                frames,
                table.summary,
                table.summaries[layer],
                page_size,
            )
            if not step.variant.dense:
                self.misses.send(layer, step, q, scale)
        if not step.variant.dense:
            self._sparse(layer, step, q, scale, out)
            return
        self.appending.join()
        self.attention.dense(layer, step, q, scale, out, page_table, self.missed_at, table.step)

    def _sparse(
        self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float, out: torch.Tensor
    ) -> None:
        table, config, page_size, batch = self.table, self.config, self.page_size, step.batch
        scores = step.scores
        assert step.selected is not None and scores is not None
        self.attention.select_resolve(
            scores,
            batch.pages,
            batch.num_pages,
            batch.seq_lens,
            self._allowed(step),
            table.frame_of[layer],
            page_size,
            config.sink_pages,
            config.window_pages,
            step.selected[layer],
            self.residency.accessed[layer],
            self._counters(layer, step),
            **({} if step.runners_up is None else {"runners_up": step.runners_up[layer]}),
        )
        self.misses.start(layer, step, q, scale)
        self.appending.join()
        self.misses.finish(layer, step, q, scale, out)
        if layer == len(self.frames) - 1 and not self.ended_by_model:
            self.end_step()

    def end_step(self) -> None:
        """Wait for what goes on behind the layers, as late in a step as may be; once more does no harm."""
        self.misses.end()

    def _score(self, layer: int, step: StepBuffers, q: torch.Tensor, scale: float) -> None:
        batch, table = step.batch, self.table
        score(
            q,
            table.summary,
            table.summaries[layer],
            batch.pages,
            batch.num_pages,
            scale,
            self.config.grouping,
            step.scores,
        )

    def _allowed(self, step: StepBuffers) -> torch.Tensor:
        batch, rule = step.batch, self.budget.rule
        caps = batch.budget[:, None].expand(-1, self.heads.kv_heads)
        if not rule.reads_scores:
            return caps
        assert step.scores is not None and step.allowed is not None
        forced, dense = self.budget.forced, self.budget.dense_pages
        return allow(rule.allow_kernel, step.scores, batch.num_pages, caps, forced, dense, step.allowed)

    def _counters(self, layer: int, step: StepBuffers) -> HitCounters | None:
        recorder = self.recorder
        if recorder is None:
            return None
        counts = recorder.counts
        return HitCounters(
            counts.rates[:, layer], counts.hits[:, layer], counts.selected[:, layer], step.rows
        )
