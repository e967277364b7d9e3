"""GpuResidency: gives pages frames and fills them, without the host."""

from __future__ import annotations

from typing import Any

import torch

from rheo_kernels.cuda.load import Candidates, load_admitted
from rheo_kernels.reference import NEVER_EVICT
from rheo_kernels.triton import (
    admit,
    gather_misses,
    load,
    place,
    save,
    value_frames,
)
from rheo_kernels.types import Admitted, IdleDecay
from rheo_sglang.decode.buffers import SparseBuffers
from rheo_sglang.page_table import PageTable
from rheo_sglang.tiering import SELECTED


class GpuResidency:
    """Admission, eviction and the transfers that go with them; `ReferenceResidency`'s counterpart on a GPU.

    Parameters
    ----------
    table
        Page table.
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]``, pinned, and ``[L, H, F, 2, D * P]``.
    """

    def __init__(self, table: PageTable, host: torch.Tensor, frames: torch.Tensor) -> None:
        self.table = table
        self.host = host
        self.frames = frames
        self.accessed = torch.zeros(table.page_of.shape, dtype=torch.int8, device=frames.device)
        self.frame_values = torch.zeros(table.page_of.shape, dtype=torch.float32, device=frames.device)
        self.row_of = torch.zeros(table.pages, dtype=torch.int32, device=frames.device)
        self.idle_decay = table.policy.decay

    def claim(self, pages: torch.Tensor, filled: bool) -> None:
        """Make pages resident in every layer and KV head, whatever has to be evicted for them.

        Parameters
        ----------
        pages
            Logical pages, ``[X]``, int32; entries of 0 and resident pages are skipped.
        filled
            Whether any of them has tokens in its host page already, which are to be loaded.
        """
        table = self.table
        rows = table.frame_of.flatten(0, 1)
        page_of, values = table.page_of.flatten(0, 1), self.frame_values.flatten(0, 1)
        value_frames(
            page_of, table.policy.worth.flatten(0, 1), table.unsaved, idle_decay=self.idle_decay, out=values
        )
        candidates = pages[None].expand(rows.shape[0], -1)
        urgent = torch.full((1, pages.shape[0]), NEVER_EVICT, device=pages.device).expand(candidates.shape)
        admitted = admit(candidates, urgent, rows, page_of, values)
        if filled:
            load(self.host, self.frames, admitted.pages, admitted.frames, admitted.counts)

    def admit_missed(
        self,
        layer: int,
        step: SparseBuffers[Any],
        most: int | None = None,
        load_quota: torch.Tensor | None = None,
    ) -> Admitted:
        """Give a step's missed pages frames that it does not read itself, the least valuable ones first.

        Runners-up get those that remain, as far as they are worth more than what is in them.

        Their frames hold the previous pages' data until they are filled; nothing reads them before the next step.

        Parameters
        ----------
        layer
            Layer index.
        step
            Its selection.
        most
            Misses of each request that are considered, the first ones; all by default.
        load_quota
            Which of them are, see `gather_misses`; all by default.
        """
        table = self.table
        worth, selected = table.policy.worth[layer], step.selected[layer]
        gather_misses(
            selected.misses,
            selected.num_hits,
            selected.num_selected,
            worth,
            SELECTED,
            step.candidates,
            step.worth,
            step.num_candidates,
            most,
            step.runners_up[layer],
            load_quota,
            table.step,
        )
        values = self._value_frames(layer, self.idle_decay, self.accessed[layer], step.num_candidates)
        return admit(
            step.candidates,
            step.worth,
            table.frame_of[layer],
            table.page_of[layer],
            values,
            step.num_candidates,
            step.admitted[layer],
        )

    def admit_seeded(
        self,
        layer: int,
        pages: torch.Tensor,
        decay: IdleDecay | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        """Offer frames to a prefilled request's best pages, against everything else that is resident.

        Parameters
        ----------
        layer
            Layer index.
        pages
            Logical pages, ``[X]``, int64.
        decay
            Of what resident pages are worth.
        keys, values
            Where their tokens are on the device, ``[Y, H, D]``.
        rows
            Row of each page's first token, ``[X]``, int32.
        """
        table = self.table
        candidates = pages.expand(table.frame_of.shape[1], -1)
        worth = table.policy.worth[layer].gather(1, candidates)
        admitted = admit(
            candidates.to(torch.int32),
            worth,
            table.frame_of[layer],
            table.page_of[layer],
            self._value_frames(layer, decay),
        )
        self.row_of.scatter_(0, pages, rows)
        place(keys, values, self.row_of, admitted.pages, admitted.frames, admitted.counts, self.frames[layer])

    def load(self, layer: int, admitted: Admitted) -> None:
        """Fill the frames of pages that were admitted."""
        load(self.host[layer], self.frames[layer], admitted.pages, admitted.frames, admitted.counts)

    def load_admitted(self, layer: int, *candidates: Candidates) -> None:
        """Fill the frames of those candidates that were admitted; see `rheo_kernels.cuda.load`."""
        load_admitted(self.host[layer], self.table.frame_of[layer], self.frames[layer], *candidates)

    def save(self, pages: torch.Tensor) -> None:
        """Complete the host copies of resident pages, ``[X]``, int32; entries of 0 are skipped."""
        save(self.frames, self.host, self.table.frame_of, pages)
        self.table.unsaved.index_fill_(1, pages.long(), False)

    def _value_frames(
        self,
        layer: int,
        decay: IdleDecay | None,
        accessed: torch.Tensor | None = None,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        table = self.table
        return value_frames(
            table.page_of[layer],
            table.policy.worth[layer],
            table.unsaved[layer : layer + 1],
            accessed,
            decay,
            wanted,
            self.frame_values[layer],
        )
