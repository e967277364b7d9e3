"""belady: the most hits that any policy could have, by looking ahead (Belady, 1966, IBM Systems Journal 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rheo_kernels.reference import runners_up
from rheo_sglang.replay.compact import Replayable
from rheo_sglang.replay.world import StepCounts
from rheo_sglang.traces.events import Event, Noted, Prompts, Step

NEVER = np.iinfo(np.int32).max
"""Key of a page that is not to be kept: it is never selected again, or can be had again before that."""

Flat = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Moment:
    """What one event gives a cache to choose from, as rows times pages.

    Attributes
    ----------
    used
        Pages that a step selects, looked up before it gives any a frame.
    available
        Pages that may get a frame after it, those of ``used`` among them.
    left_out
        Which of ``available`` the step did not select.
    claimed
        Pages that have a frame before a step looks any up, whatever the policy.
    freed
        Pages that are gone.
    step
        The step; None for other events.
    """

    used: Flat
    available: Flat
    left_out: npt.NDArray[np.bool_]
    claimed: Flat
    freed: npt.NDArray[np.int32]
    step: Step | None


class Belady:
    """Keeps, of the pages that a server could have in frames, those that are selected next.

    A page may be kept from when it was last to be had: when a step selected it or had it among the runners-up, when it
    was claimed as a tail, or when a prompt's end offered it a frame. Each later use is a hit if the page was kept all
    the while, which is an interval; of intervals that overlap no more than there are frames, most are kept if the one
    that ends last goes first. Policies are offered the same pages at the same times, so that none has more hits.

    Parameters
    ----------
    replayable
        What is run.
    runners_up
        Pages that a selection left out and that may get frames, as many as policies are offered.
    """

    def __init__(self, replayable: Replayable, runners_up: int) -> None:
        self.rows = replayable.layers * replayable.kv_heads
        self.pages = replayable.pages
        self.page_size = replayable.page_size
        self.runners_up = runners_up
        self.moments = [self._moment(event) for event in replayable.events]
        self.keys = self._look_ahead()

    def run(self, frames: int) -> list[StepCounts]:
        """Counts of every step that selects, with so many frames of each row."""
        key = np.full((self.rows, self.pages), NEVER, dtype=np.int32)
        flat = key.reshape(-1)
        found = []
        for moment, (claimed_keys, keys) in zip(self.moments, self.keys, strict=True):
            key[:, moment.freed] = NEVER
            flat[moment.claimed] = claimed_keys
            if len(moment.claimed):
                self._trim(key, frames)
            held = flat[moment.used]
            hit = held != NEVER
            before = flat[moment.available] != NEVER
            flat[moment.available] = keys
            self._trim(key, frames)
            if moment.step is not None and moment.step.selected is not None:
                loaded = (flat[moment.available] != NEVER) & ~before
                found.append(self._counts(moment, hit, int((loaded & moment.left_out).sum())))
        return found

    def _trim(self, key: npt.NDArray[np.int32], frames: int) -> None:
        """Drop what is selected latest where more is kept than there are frames."""
        over = np.flatnonzero((key != NEVER).sum(1) > frames)
        if not len(over):
            return
        order = np.argpartition(key[over], frames, axis=1)[:, frames:]
        key[over[:, None], order] = NEVER

    def _counts(self, moment: Moment, hit: npt.NDArray[np.bool_], ahead: int) -> StepCounts:
        step = moment.step
        assert step is not None and step.num_selected is not None and step.selected is not None
        batch = len(step.requests)
        hits = np.zeros((batch, self.rows), dtype=np.int64)
        resident = np.zeros(self.rows * self.pages, dtype=bool)
        resident[moment.used] = hit
        index, valid = _selected(step)
        for request in range(batch):
            pages = step.pages[request][np.clip(index[request], 0, None)]
            rows = np.arange(self.rows)[:, None] * self.pages
            hits[request] = (resident[rows + pages] & valid[request]).sum(1)
        selected = step.num_selected.transpose(1, 0, 2).reshape(batch, self.rows)
        return StepCounts(step.requests, selected.astype(np.int64), hits, ahead)

    def _moment(self, event: Event) -> Moment:
        nothing, none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        if isinstance(event, Noted):
            gone = np.arange(self.pages, dtype=np.int32) if event.kind == "clear" else event.pages
            gone = np.zeros(0, dtype=np.int32) if event.kind == "fold" else gone
            return Moment(nothing, nothing, none, nothing, gone, None)
        none_freed = np.zeros(0, dtype=np.int32)
        if isinstance(event, Prompts):
            offered = self._everywhere(event.offered)
            return Moment(nothing, offered, np.ones(len(offered), dtype=bool), nothing, none_freed, None)
        num_pages = -(-event.tokens // self.page_size)
        tails = event.pages[np.arange(len(event.tokens)), num_pages - 1]
        claimed = self._everywhere(tails)
        if event.selected is None or event.scores is None:
            return Moment(nothing, nothing, none, claimed, none_freed, event)
        index, valid = _selected(event)
        rows = np.arange(self.rows)[None, :, None] * self.pages
        batch = np.arange(len(event.tokens))[:, None, None]
        used = np.unique((rows + event.pages[batch, np.clip(index, 0, None)])[valid])
        runners = runners_up(
            torch.from_numpy(event.scores).transpose(0, 1).flatten(1, 2),
            torch.from_numpy(np.where(valid, index, -1)),
            torch.from_numpy(event.pages),
            torch.from_numpy(num_pages),
            torch.full((self.rows, self.pages), -1, dtype=torch.int32),
            self.runners_up,
        )
        offered = (rows + runners.pages.numpy())[runners.pages.numpy() > 0]
        available = np.union1d(used, offered)
        left_out = ~np.isin(available, used)
        return Moment(used, available, left_out, claimed, none_freed, event)

    def _everywhere(self, pages: npt.NDArray[np.int32]) -> Flat:
        """Pages in every row; 0 is none."""
        kept = np.unique(pages[pages > 0]).astype(np.int64)
        return (np.arange(self.rows)[:, None] * self.pages + kept).reshape(-1)

    def _look_ahead(self) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Of every event's claimed and available pages, the event that selects each next; see `NEVER`."""
        upcoming = np.full(self.rows * self.pages, NEVER, dtype=np.int32)
        keys = []
        for number in range(len(self.moments) - 1, -1, -1):
            moment = self.moments[number]
            after = upcoming[moment.available]
            upcoming[moment.available] = NEVER
            upcoming[moment.used] = number
            claimed = upcoming[moment.claimed]
            upcoming[moment.claimed] = NEVER
            upcoming.reshape(self.rows, self.pages)[:, moment.freed] = NEVER
            keys.append((claimed, after))
        return keys[::-1]


def _selected(step: Step) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Indices of a step's selection, ``[B, L * H, S]``, and which of them are any."""
    assert step.selected is not None and step.num_selected is not None
    batch = len(step.requests)
    index = step.selected.transpose(1, 0, 2, 3).reshape(batch, -1, step.selected.shape[3])
    counts = step.num_selected.transpose(1, 0, 2).reshape(batch, -1)
    return index, np.arange(index.shape[2]) < counts[:, :, None]
