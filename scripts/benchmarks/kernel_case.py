"""DecodeCase: buffers of one decode step at the Qwen3-8B shape, and every kernel's calls over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from rheo_kernels import triton as kernels
from rheo_kernels.cuda.attend import Workspace, attend_selected
from rheo_kernels.cuda.select_resolve import select_resolve
from rheo_kernels.triton.partial import num_splits
from rheo_kernels.types import Admitted, HitCounters, Partials, Selected, Stamps
from rheo_sglang.selection.bound import BoundSummary

HEADS, GROUP, DIM, PAGE = 8, 4, 128, 32
BLOCK_BYTES = 2 * 2 * DIM * PAGE
SCALE = DIM**-0.5
BUDGET, HIT_RATE, ALPHA = 0.1, 0.9, 0.3
DTYPE = torch.bfloat16
SUMMARY = BoundSummary()
COLD_BYTES = 192 * 2**20
RUN = 64


class DecodeCase:
    """Decode buffers of one batch size and context, with enough layers to defeat the L2 cache.

    Pages of a request lie in runs of `RUN` consecutive logical pages, the runs in random order.

    Parameters
    ----------
    batch
        Requests.
    context
        Tokens of each.
    """

    def __init__(self, batch: int, context: int) -> None:
        self.batch = batch
        self.columns = columns = context // PAGE
        self.width = width = max(int(columns * BUDGET), 16)
        self.total = total = batch * columns + 1
        self.num_frames = frames = int(1.25 * batch * width)
        self.layers = layers = max(min(COLD_BYTES // (total * HEADS * 4 * DIM), 64), 8)
        self.frame_layers = max(min(COLD_BYTES // (frames * HEADS * BLOCK_BYTES), 64), 1)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device="cuda", dtype=DTYPE)

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device="cuda")

        self.q = normal(batch, HEADS * GROUP, DIM)
        self.k, self.v = normal(batch, HEADS, DIM), normal(batch, HEADS, DIM)
        self.summaries = normal(layers, HEADS, total, 2, DIM).abs_()
        self.summaries[:, :, :, 0].neg_()
        self.frames = normal(self.frame_layers, HEADS, frames, 2, DIM * PAGE)
        runs = torch.randperm((total - 1) // RUN, device="cuda")[:, None] * RUN
        runs = runs + torch.arange(RUN, device="cuda") + 1
        self.pages = runs.view(batch, columns).to(torch.int32)
        self.num_pages = torch.full((batch,), columns, dtype=torch.int32, device="cuda")
        self.seq_lens = torch.full((batch,), context - 3, device="cuda")
        self.tail_pages = self.pages[:, -1].contiguous()
        self.offsets = torch.full((batch,), PAGE - 4, dtype=torch.int32, device="cuda")
        self.budget = torch.full((batch, HEADS), width, dtype=torch.int32, device="cuda")
        self.scores = zeros(layers, batch, HEADS, columns, dtype=torch.float32)
        self.importance = torch.rand((layers, HEADS, total), device="cuda")
        self.scratch = zeros(HEADS, total) if batch > 1 else None
        self.unsaved = zeros(1, total, dtype=torch.bool)
        self.accessed = zeros(HEADS, frames, dtype=torch.int8)
        self.out = zeros(batch, HEADS * GROUP, DIM, dtype=DTYPE)
        self.slots = torch.arange(batch, device="cuda")
        self.counters = HitCounters(
            zeros(batch, HEADS, dtype=torch.float32),
            zeros(batch, HEADS, dtype=torch.int64),
            zeros(batch, HEADS, dtype=torch.int64),
            self.slots,
        )
        self.step = torch.ones((), dtype=torch.int32, device="cuda")
        self.stamped = zeros(layers, HEADS, total)
        self.last_active = torch.ones(total, dtype=torch.int32, device="cuda")
        parts = batch + kernels.total_programs(total)
        self.working_sets = zeros(layers * HEADS, parts)
        self.selected = Selected.allocate(batch, HEADS, width, "cuda")
        room = batch * width
        self.candidates = zeros(HEADS, room)
        self.worth = zeros(HEADS, room, dtype=torch.float32)
        self.num_candidates = zeros(HEADS)
        self.frame_values = zeros(HEADS, frames, dtype=torch.float32)
        self.admitted = Admitted.allocate(HEADS, room, "cuda")
        self._make_resident()
        self.scratch_table, self.scratch_page_of = self.table[0].clone(), self.page_of[0].clone()
        splits = num_splits(batch * HEADS, width)
        self.hits = Partials.allocate(batch * HEADS, GROUP, DIM, splits, "cuda")
        self.misses = Partials.allocate(
            batch * HEADS, GROUP, DIM, kernels.fetch_splits(batch * HEADS), "cuda"
        )
        pairs = batch * HEADS
        self.workspace = Workspace.allocate(pairs, GROUP, DIM, PAGE, width, self.q.device)
        self.staged = torch.empty((pairs, width, 2, DIM * PAGE), dtype=DTYPE, device="cuda")
        self.side = torch.cuda.Stream()

    def _make_resident(self) -> None:
        """Give frames to `HIT_RATE` of each layer's selection and to the tail pages."""
        shape = (self.layers, HEADS, self.total)
        self.table = torch.full(shape, -1, dtype=torch.int32, device="cuda")
        self.page_of = torch.full((self.layers, HEADS, self.num_frames), -1, dtype=torch.int32, device="cuda")
        for layer in range(self.layers):
            self.score(layer)
            self.select_resolve(layer)
            pages = self.selected.pages.transpose(0, 1).flatten(1).long()
            for head in range(HEADS):
                kept = pages[head][torch.rand(pages.shape[1], device="cuda") < HIT_RATE]
                kept = torch.cat((kept, self.tail_pages.long())).unique()
                frame = torch.randperm(self.num_frames, device="cuda")[: kept.numel()]
                self.table[layer, head, kept] = frame.to(torch.int32)
                self.page_of[layer, head, frame] = kept.to(torch.int32)
        self.select_resolve(0)

    def score(self, layer: int) -> None:
        kernels.score(
            self.q,
            SUMMARY,
            self.summaries[layer],
            self.pages,
            self.num_pages,
            SCALE,
            "mean",
            self.scores[layer],
        )

    def select_resolve(self, layer: int) -> None:
        self._select_resolve(select_resolve, layer)

    def select_resolve_triton(self, layer: int) -> None:
        self._select_resolve(kernels.select_resolve, layer)

    def _select_resolve(self, function: Callable[..., object], layer: int) -> None:
        function(
            self.scores[layer],
            self.pages,
            self.num_pages,
            self.seq_lens,
            self.budget,
            self.table[layer],
            PAGE,
            1,
            2,
            self.selected,
            self.accessed,
            self.counters,
            stamps=Stamps(self.step, self.stamped[layer]),
        )

    def update_importance(self, layer: int) -> None:
        kernels.update_importance(
            self.scores[layer], self.pages, self.num_pages, ALPHA, self.importance[layer], self.scratch
        )

    def select_path(self, layer: int) -> None:
        """Score, select and resolve; importance is updated on a side stream that joins at the end."""
        main = torch.cuda.current_stream()
        self.score(layer)
        self.side.wait_stream(main)
        with torch.cuda.stream(self.side):
            self.update_importance(layer)
        self.select_resolve(layer)
        main.wait_stream(self.side)

    def append(self, layer: int) -> None:
        kernels.append(
            self.k,
            self.v,
            self.tail_pages,
            self.offsets,
            self.table[0],
            self.frames[layer],
            SUMMARY,
            self.summaries[0],
            PAGE,
        )

    def select(self, layer: int) -> None:
        kernels.select(
            self.scores[layer], self.num_pages, self.budget, 1, 2, self.width, self.selected.indices
        )

    def attend(self, layer: int) -> None:
        """Hits attended and merged."""
        frames, selected = self.frames[layer], self.selected
        attend_selected(self.q, frames, None, selected, SCALE, PAGE, self.workspace, self.out)

    def attend_triton(self, layer: int) -> None:
        kernels.attend(
            self.q,
            self.frames[layer],
            self.selected.hits,
            self.selected.valid,
            SCALE,
            PAGE,
            last=self.selected.num_hits,
            partials=self.hits,
        )

    def merge(self, layer: int) -> None:
        kernels.merge(self.hits, self.misses, self.out)

    def count_working_sets(self) -> None:
        """All layers in one launch, as every 16 steps."""
        kernels.count_working_sets(
            self.pages,
            self.num_pages,
            self.last_active,
            self.stamped.flatten(0, 1),
            1,
            1,
            self.working_sets,
        )

    def gather_misses(self, layer: int) -> None:
        kernels.gather_misses(
            self.selected.misses,
            self.selected.num_hits,
            self.selected.num_selected,
            self.importance[layer],
            1.0,
            self.candidates,
            self.worth,
            self.num_candidates,
        )

    def value_frames(self, layer: int) -> None:
        kernels.value_frames(
            self.page_of[layer],
            self.importance[layer],
            self.unsaved,
            self.accessed,
            wanted=self.num_candidates,
            out=self.frame_values,
        )

    def reset(self, layer: int) -> None:
        """Restore the page table that `admit` changes."""
        self.scratch_table.copy_(self.table[layer])
        self.scratch_page_of.copy_(self.page_of[layer])

    def admit(self, layer: int) -> None:
        """Admit layer 0's misses, from the same page table every time."""
        self.reset(0)
        kernels.admit(
            self.candidates,
            self.worth,
            self.scratch_table,
            self.scratch_page_of,
            self.frame_values,
            self.num_candidates,
            self.admitted,
        )

    def kernels(self) -> Iterator[tuple[str, list[Callable[[], object]], float]]:
        """Name, calls over the layers, and bytes that one call has to move, of every device kernel."""
        pairs, listing = self.batch * HEADS, self.batch * self.columns * 4
        pages, listed = pairs * self.columns, pairs * self.width
        hits = float(self.selected.num_hits.sum())
        misses = float((self.selected.num_selected - self.selected.num_hits).sum())
        score_bytes = pages * (4 * DIM + 4) + listing
        select_bytes = pages * 4 + listed * 32
        rank_bytes = pages * 12 + listing

        def layers(call: Callable[[int], object], count: int = self.layers) -> list[Callable[[], object]]:
            return [partial(call, layer) for layer in range(count)]

        yield "append", layers(self.append, self.frame_layers), pairs * DIM * 2 * 8
        yield "score", layers(self.score), score_bytes
        yield "select", layers(self.select), pages * 4 + listed * 4
        yield "select_resolve", layers(self.select_resolve), select_bytes
        yield "select_resolve_triton", layers(self.select_resolve_triton), select_bytes
        yield "update_importance", layers(self.update_importance), rank_bytes
        yield "select_path", layers(self.select_path), score_bytes + select_bytes + rank_bytes
        self.select_resolve(0)
        yield "attend", layers(self.attend, self.frame_layers), hits * BLOCK_BYTES
        yield "attend_triton", layers(self.attend_triton, self.frame_layers), hits * BLOCK_BYTES
        parts = self.hits.splits + self.misses.splits
        self.misses.lse.fill_(-torch.inf)
        yield "merge", layers(self.merge), parts * pairs * GROUP * (DIM + 1) * 4
        yield "gather_misses", layers(self.gather_misses), misses * 16
        rows = self.layers * HEADS
        yield "count_working_sets", [self.count_working_sets], rows * (pages / HEADS + self.total) * 8
        yield "value_frames", layers(self.value_frames), HEADS * self.num_frames * 15
        self.select_resolve(0)
        self.gather_misses(0)
        self.value_frames(0)
        yield "admit", layers(self.admit), HEADS * self.num_frames * 4 + misses * 44

    def transfers(self, host: torch.Tensor) -> Iterator[tuple[str, Callable[[], object], float, str]]:
        """Name, call, bytes over PCIe and the copy to compare with, of every kernel that moves pages.

        Parameters
        ----------
        host
            One layer's host pages, ``[X, H, 2, D * P]``, pinned.
        """
        self.select_resolve(0)
        table = self.table[0].clone()
        misses = self.selected.misses.transpose(0, 1).flatten(1)
        room = int((misses >= 0).sum(1).max())
        pages = torch.zeros((HEADS, room), dtype=torch.int32, device="cuda")
        targets = torch.zeros_like(pages)
        counts = (misses >= 0).sum(1, dtype=torch.int32)
        for head in range(HEADS):
            missed = misses[head][misses[head] >= 0].long()
            free = (self.page_of[0, head] < 0).nonzero().squeeze(1)[: missed.numel()]
            table[head, missed] = free.to(torch.int32)
            pages[head, : missed.numel()] = missed % host.shape[0]
            targets[head, : missed.numel()] = free
        loaded = float(counts.sum()) * BLOCK_BYTES
        frames = self.frames[0]
        yield "load", lambda: kernels.load(host, frames, pages, targets, counts), loaded, "pinned_h2d_gbps"
        if self.total <= host.shape[0]:
            selected = self.selected
            fetched = torch.zeros((), dtype=torch.int64, device="cuda")
            yield (
                "attend_fetch",
                lambda: attend_selected(
                    self.q,
                    frames,
                    host,
                    selected,
                    SCALE,
                    PAGE,
                    self.workspace,
                    self.out,
                    self.staged,
                ),
                loaded,
                "pinned_h2d_gbps",
            )
            yield (
                "attend_fetch_triton",
                lambda: kernels.attend_fetch(
                    self.q,
                    host,
                    selected.misses,
                    selected.valid,
                    selected.num_hits,
                    selected.num_selected,
                    SCALE,
                    PAGE,
                    self.misses,
                    self.staged,
                ),
                loaded,
                "pinned_h2d_gbps",
            )
            yield (
                "fill",
                lambda: kernels.fill(
                    self.staged,
                    selected.misses,
                    selected.num_hits,
                    selected.num_selected,
                    table,
                    frames,
                    fetched,
                ),
                2 * loaded,
                "device_copy_gbps",
            )
        tails = torch.arange(1, self.batch + 1, device="cuda", dtype=torch.int32)
        resident = torch.zeros((HEADS, self.batch + 1), dtype=torch.int32, device="cuda")
        yield (
            "save",
            lambda: kernels.save(frames, host, resident, tails),
            self.batch * HEADS * BLOCK_BYTES,
            "pinned_d2h_gbps",
        )
