"""DecodeStep: one decode step of one layer, from the new token's K and V to the attention output."""

from __future__ import annotations

import torch

from rheo_kernels import cpu, reference
from rheo_kernels.reference import (
    append,
    merge,
    resolve,
    runners_up,
    save,
)
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.batch import DecodeBatch
from rheo_sglang.decode.reference_residency import Residency
from rheo_sglang.page_table import PageTable
from rheo_sglang.recorder import Recorder
from rheo_sglang.selection.selector import Selector

RUNNERS_UP = 64
"""Pages that a selection left out and that are offered frames, per request and KV head."""


class DecodeStep:
    """Append, score, select, resolve, attend, merge, admit.

    Parameters
    ----------
    config
        Settings.
    table
        Page table.
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]`` and ``[L, H, F, 2, D * P]``.
    page_size
        Tokens per page.
    residency
        Gives pages frames.
    recorder
        Counts hits, or None.
    cpu_attention
        Whether the C++ kernel works here; the torch reference attends otherwise, and where frames are on a GPU.
    """

    def __init__(
        self,
        config: RheoConfig,
        table: PageTable,
        host: torch.Tensor,
        frames: torch.Tensor,
        page_size: int,
        residency: Residency,
        recorder: Recorder | None,
        cpu_attention: bool = True,
    ) -> None:
        self.config = config
        self.table = table
        self.host = host
        self.frames = frames
        self.page_size = page_size
        self.recorder = recorder
        self.selector = Selector(
            table.summary,
            config.grouping,
            config.sink_pages,
            config.window_pages,
            config.budget_rule(),
            -(-config.dense_tokens // page_size),
        )
        self.splits = config.splits(frames.device.type)
        native = cpu_attention and frames.device.type == "cpu"
        self.attend = cpu.attend if native else reference.attend
        self.residency = residency

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: DecodeBatch,
        scale: float,
    ) -> torch.Tensor:
        """Run the step.

        Parameters
        ----------
        layer
            Layer index within this rank.
        q
            Queries, ``[B, Hq, D]``.
        k, v
            The new tokens' keys and values, ``[B, H, D]``.
        batch
            What the layers share.
        scale
            Softmax scale.

        Returns
        -------
        torch.Tensor
            Attention output, ``[B, Hq, D]``, float32.
        """
        table, page_size = self.table, self.page_size
        self._append(layer, k, v, batch)
        scores, selected = self.selector(
            q, table.summaries[layer], batch.pages, batch.num_pages, batch.budget, batch.width, scale
        )
        found = resolve(selected, batch.pages, batch.seq_lens, table.frame_of[layer], page_size)
        left_out = runners_up(
            scores, selected, batch.pages, batch.num_pages, table.frame_of[layer], RUNNERS_UP
        )
        table.policy.on_step(layer, scores, found, batch.pages, batch.num_pages)
        if self.recorder is not None:
            assert batch.rows is not None
            self.recorder.count(layer, batch.rows, found.num_hits, found.num_selected)
        if not self.splits:
            self.residency.admit_selected(layer, found.misses, found.hits, left_out)
            found = resolve(selected, batch.pages, batch.seq_lens, table.frame_of[layer], page_size)

        hit_part = self.attend(q, self.frames[layer], found.hits, found.valid, scale, page_size)
        host = self.host[layer].transpose(0, 1)
        miss_part = self.attend(q, host, found.misses, found.valid, scale, page_size)
        out, lse = merge(*hit_part, *miss_part)

        if self.recorder is not None and self.recorder.records_mass:
            assert batch.rows is not None
            self.recorder.cover(layer, batch.rows, self._covered_mass(layer, q, selected, lse, batch, scale))
        if self.splits:
            self.residency.admit_selected(layer, found.misses, found.hits, left_out)
        return out

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
        )
        table.unsaved[layer, batch.tail_pages.long()] = batch.tail_pages > 0
        save(self.frames[layer], self.host[layer], table.frame_of[layer], batch.filled)
        table.unsaved[layer, batch.filled] = False

    def _covered_mass(
        self,
        layer: int,
        q: torch.Tensor,
        selected: torch.Tensor,
        lse: torch.Tensor,
        batch: DecodeBatch,
        scale: float,
    ) -> torch.Tensor:
        """Share of dense attention that the selection holds, ``[B, H]``, mean over the GQA group."""
        heads, width = selected.shape[1], batch.pages.shape[1]
        position = torch.arange(width, device=q.device, dtype=torch.int32)
        rest = position.expand(q.shape[0], heads, width)
        rest = rest.masked_fill(position >= batch.num_pages[:, None, None], -1)
        chosen = torch.zeros((*rest.shape[:2], width + 1), dtype=torch.bool, device=q.device)
        chosen.scatter_(2, selected.long() + 1, True)
        rest = rest.masked_fill(chosen[:, :, 1:], -1)
        found = resolve(rest, batch.pages, batch.seq_lens, self.table.frame_of[layer], self.page_size)
        _, resident = self.attend(q, self.frames[layer], found.hits, found.valid, scale, self.page_size)
        host = self.host[layer].transpose(0, 1)
        _, missed = self.attend(q, host, found.misses, found.valid, scale, self.page_size)
        share = (lse - torch.logaddexp(lse, torch.logaddexp(resident, missed))).exp()
        return share.view(q.shape[0], heads, -1).mean(2)
