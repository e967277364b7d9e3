"""ReferenceResidency: gives pages frames and fills them, one layer at a time."""

from __future__ import annotations

import torch

from rheo_kernels.reference import NEVER_EVICT, admit, load, value_frames
from rheo_kernels.types import IdleDecay, RunnersUp, Selected
from rheo_sglang.page_table import PageTable
from rheo_sglang.tiering import SELECTED


class ReferenceResidency:
    """Admission, eviction and the transfers that go with them.

    Parameters
    ----------
    table
        Page table.
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]`` and ``[L, H, F, 2, D * P]``.
    """

    def __init__(self, table: PageTable, host: torch.Tensor, frames: torch.Tensor) -> None:
        self.table = table
        self.host = host
        self.frames = frames

    def claim(self, layer: int, pages: torch.Tensor) -> None:
        """Make pages resident in every KV head, whatever has to be evicted for them.

        Parameters
        ----------
        layer
            Layer index.
        pages
            Logical pages, ``[X]``, integer; entries of 0 are skipped. At most ``F``, the pinned ones included.
        """
        candidates = pages.long()[None].expand(self.table.frame_of.shape[1], -1)
        frame_values = self._frame_values(layer, self.table.policy.decay)
        claimed = self._in_frames(self.table.frame_of[layer].gather(1, candidates))
        values = torch.full(candidates.shape, NEVER_EVICT, device=pages.device)
        self._admit(layer, candidates, values, frame_values.masked_fill_(claimed, NEVER_EVICT))

    def admit_missed(self, layer: int, selected: Selected, runners_up: RunnersUp) -> None:
        """Give a step's missed pages and runners-up frames, as far as they outrank what is resident.

        Parameters
        ----------
        layer
            Layer index.
        selected
            The selection; none of the frames that it hit is given away.
        runners_up
            Pages that the step left out.
        """
        column = torch.arange(runners_up.pages.shape[2], device=selected.misses.device)
        left_out = runners_up.pages.masked_fill(column >= runners_up.counts[:, :, None], -1)
        missed, others = (pages.transpose(0, 1).flatten(1).long() for pages in (selected.misses, left_out))
        candidates = torch.cat((missed, others), 1)
        values = self.table.policy.values(layer, candidates.clamp(min=0))
        values[:, : missed.shape[1]] += SELECTED
        hit = self._in_frames(selected.hits.transpose(0, 1).flatten(1))
        frame_values = self._frame_values(layer, self.table.policy.decay)
        self._admit(layer, candidates, values, frame_values.masked_fill(hit, NEVER_EVICT))

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
        keys, values, rows
            Where else their tokens are; host pages are as near here.
        """
        candidates = pages.expand(self.table.frame_of.shape[1], -1)
        worth = self.table.policy.worth[layer].gather(1, candidates)
        self._admit(layer, candidates, worth, self._frame_values(layer, decay))

    def _frame_values(self, layer: int, decay: IdleDecay | None) -> torch.Tensor:
        table, policy = self.table, self.table.policy
        unsaved = table.unsaved[layer : layer + 1]
        return value_frames(table.page_of[layer], policy.worth[layer], unsaved, idle_decay=decay)

    def _in_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Mark listed frames: ``[H, X]`` with -1 = none to ``[H, F]``, bool."""
        heads, count = self.table.page_of.shape[1:]
        marks = torch.zeros((heads, count + 1), dtype=torch.bool, device=frames.device)
        return marks.scatter_(1, frames.long() + 1, True)[:, 1:]

    def _admit(
        self, layer: int, candidates: torch.Tensor, values: torch.Tensor, frame_values: torch.Tensor
    ) -> None:
        table = self.table
        admitted = admit(candidates, values, table.frame_of[layer], table.page_of[layer], frame_values)
        load(self.host[layer], self.frames[layer], *admitted)
