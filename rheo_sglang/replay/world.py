"""World: a page table, a tiering policy and residency that run a trace's events as the reference engine would."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from rheo_kernels.reference import resolve, runners_up
from rheo_sglang.decode.reference_residency import ReferenceResidency
from rheo_sglang.page_table import PageTable
from rheo_sglang.replay.compact import Replayable
from rheo_sglang.traces.events import Noted, Prompts, Step


class StepCounts(NamedTuple):
    """What one step did, by request and row: a row is a layer and KV head."""

    requests: list[str]
    selected: npt.NDArray[np.int64]
    """``[B, L * H]``."""
    hits: npt.NDArray[np.int64]
    """``[B, L * H]``."""
    ahead: int
    """Pages that were loaded although the step did not select them, in all rows."""


class World:
    """Runs events. All layers are rows of one: they do not know of each other, and one call serves all.

    Nothing is transferred: blocks are empty.

    Parameters
    ----------
    replayable
        What will be run.
    policy
        Name of the tiering policy.
    frames
        Frames of each layer and KV head.
    runners_up
        How many pages that a selection left out are looked at for frames; see `ReferenceDecodeEngine`.
    importance_alpha, prewarm
        See `PolicyInputs`.
    """

    def __init__(
        self,
        replayable: Replayable,
        policy: str,
        frames: int,
        runners_up: int,
        importance_alpha: float,
        prewarm: float = 0.0,
    ) -> None:
        rows = replayable.layers * replayable.kv_heads
        self.page_size = replayable.page_size
        self.num_runners_up = runners_up
        self.table = PageTable(
            1,
            rows,
            16,
            self.page_size,
            replayable.pages,
            frames,
            "mean",
            policy,
            torch.float32,
            "cpu",
            importance_alpha,
            prewarm=prewarm,
        )
        host = torch.empty((1, replayable.pages, rows, 2, 0))
        self.residency = ReferenceResidency(self.table, host, torch.empty((1, rows, frames, 2, 0)))

    def note(self, event: Noted) -> None:
        """Carry out what the scheduler noted."""
        pages = torch.tensor(event.pages)
        if event.kind == "fold":
            self.table.fold(pages, torch.tensor(event.survivors))
        elif event.kind == "clear":
            self.table.clear()
        else:
            self.table.release(pages)
        self.table.settle()

    def prefill(self, event: Prompts) -> None:
        """Run a prefill pass: what it seeds, and what it offers frames."""
        pages, num_pages = self._lists(event)
        self.table.list_pages(pages, num_pages)
        ended = len(event.caps)
        if not ended:
            return
        decay = self.table.policy.prompt_decay(pages, num_pages)
        mass = torch.from_numpy(event.mass).transpose(0, 1).flatten(1, 2)
        caps = torch.from_numpy(event.caps)
        self.table.policy.on_prefill(0, mass, pages[:ended], num_pages[:ended], caps)
        offered = torch.from_numpy(event.offered).long()
        if offered.numel():
            nothing = torch.empty(0)
            self.residency.admit_seeded(0, offered, decay, nothing, nothing, nothing)

    def step(self, event: Step) -> StepCounts | None:
        """Run a decode step; counts, unless it took the dense shortcut."""
        table = self.table
        table.begin_step()
        pages, num_pages = self._lists(event)
        table.list_pages(pages, num_pages)
        seq_lens = torch.from_numpy(event.tokens)
        tails = pages.gather(1, (num_pages - 1).long()[:, None])[:, 0]
        self.residency.claim(0, tails)
        filled = seq_lens % self.page_size == 0
        table.unsaved[0, tails.long()] = ~filled
        if event.scores is None or event.selected is None or event.num_selected is None:
            return None
        scores = torch.from_numpy(event.scores).transpose(0, 1).flatten(1, 2)
        frame_of = table.frame_of[0]
        indices = self.selection(event, scores)
        selected = resolve(indices, pages, seq_lens, frame_of, self.page_size)
        left_out = runners_up(scores, indices, pages, num_pages, frame_of, self.num_runners_up)
        table.policy.on_step(0, scores, selected, pages, num_pages)
        before = frame_of >= 0
        self.residency.admit_missed(0, selected, left_out)
        loaded = (frame_of >= 0) & ~before
        missed = torch.zeros((loaded.shape[0], loaded.shape[1] + 1), dtype=torch.bool)
        missed.scatter_(1, selected.misses.transpose(0, 1).flatten(1).long() + 1, True)
        ahead = int((loaded & ~missed[:, 1:]).sum())
        num_selected, num_hits = (
            part.numpy().astype(np.int64) for part in (selected.num_selected, selected.num_hits)
        )
        return StepCounts(event.requests, num_selected, num_hits, ahead)

    def selection(self, event: Step, scores: torch.Tensor) -> torch.Tensor:
        """What a step selects, ``[B, L * H, S]``, int32, -1 = none: what was traced, whatever has a frame here.

        ``scores`` are the event's, ``[B, L * H, M]``.
        """
        assert event.selected is not None
        assert event.num_selected is not None
        within = np.arange(event.selected.shape[3]) < event.num_selected[..., None]
        return torch.from_numpy(np.where(within, event.selected, -1)).transpose(0, 1).flatten(1, 2)

    def _lists(self, event: Prompts | Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Page lists and how many pages are in each."""
        tokens = torch.from_numpy(event.tokens)
        return torch.from_numpy(event.pages), (tokens + self.page_size - 1) // self.page_size
