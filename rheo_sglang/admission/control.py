"""AdmissionControl: what each request needs of the frames, measured and predicted, and what follows from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from rheo_sglang.admission.controller import SHRINK, Action, Controller, Observation, Rules
from rheo_sglang.budget import BudgetSettings
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.engine import DecodeEngine
from rheo_sglang.working_sets import COUNTED_EVERY, WorkingSetCount

logger = logging.getLogger(__name__)

GROWTH = 2.0
"""Working set over cap of a request before any was measured."""
GROWTH_WEIGHT = 0.25
"""Weight of the newest measurement of it."""
UNKNOWN = -2.0
"""Of what is not known in what ranks agree on, which is the largest value of any."""

Agree = Callable[[torch.Tensor], torch.Tensor]
"""Makes a tensor on the CPU the largest of any rank, element by element."""


class Request(NamedTuple):
    """A request as admission sees it."""

    rid: str
    tokens: int
    """Of its prompt and its answer so far."""
    budget: BudgetSettings | None = None
    """Its own settings; None for the server's."""


@dataclass
class _Known:
    """What is known of a running request."""

    since: int
    """Decode steps when it joined."""
    measured: float | None = None
    """Its working set, mean over layers and KV heads, as of the last observation that had it."""


class AdmissionControl:
    """Feeds the controller every `COUNTED_EVERY` decode steps, and answers who may join.

    A request that has run for as many steps as working sets are counted over needs what was measured, any other at
    least what its budget predicts: its cap times the *growth* that was measured of late, working set over cap; all its
    pages while they are so few that it selects them all. What requests share is needed once: all are scaled by the
    share of distinct pages among those that were counted, and by how far the fullest layer is above the mean.

    Ranks decide alike: everything comes from the scheduler's own state, which SGLang keeps equal, and from
    measurements that ``agree`` makes equal, at a step number that all ranks reach with the same batches.

    Parameters
    ----------
    engine
        Runs the decode steps.
    config
        Settings.
    agree
        For measurements of several ranks; one rank needs none.
    logs
        Whether this rank writes the log lines.
    """

    def __init__(
        self, engine: DecodeEngine, config: RheoConfig, agree: Agree | None = None, logs: bool = True
    ) -> None:
        self.budget = engine.budget
        self.sets = engine.working_sets
        self.table = engine.table
        self.page_size = engine.page_size
        self.agree = agree
        self.logs = logs
        rules = Rules(config.admission_overcommit, config.thrash_hit_rate, config.thrash_budget)
        self.controller = Controller(rules)
        self.growth = GROWTH
        self.scale = 1.0
        self.total = 0.0
        self.hit_rate: float | None = None
        self.counters = {action.name.lower(): 0 for action in Action if action is not Action.NONE}
        self.counters |= {"admitted": 0, "refused": 0, "paused": 0}
        self._known: dict[str, _Known] = {}
        self._measured: dict[str, float] = {}
        self._hits: dict[str, tuple[int, int]] = {}
        self._rate: float | None = None
        self._seen: WorkingSetCount | None = None
        self._next = COUNTED_EVERY
        self._resized = -self.sets.steps

    @property
    def frames(self) -> int:
        """Of a layer and KV head."""
        return self.table.frames

    @property
    def all_fit(self) -> bool:
        """Whether every page may have a frame; then nothing is controlled."""
        return self.frames >= self.table.pages - 1

    @property
    def due(self) -> bool:
        """Whether it is time to `observe`; the same on every rank."""
        return self.table.activity.steps >= self._next

    def cap(self, request: Request) -> int:
        """Pages that a request may select per KV head in its next step."""
        return self.budget.cap_of(self._pages(request), self.controller.factor, request.budget)

    def needs(self, request: Request) -> float:
        """Frames that a request needs per layer and KV head, if it shares no page."""
        known = self._known.get(request.rid)
        measured = None if known is None else known.measured
        if measured is not None and self._is_settled(request):
            return measured
        pages = self._pages(request)
        predicted = float(pages)
        if pages > self.budget.dense_pages:
            predicted = min(predicted, self.growth * self.cap(request))
        return predicted if measured is None else max(predicted, measured)

    def admits(self, request: Request, running: Sequence[Request]) -> bool:
        """Whether a request may join those that run or are about to."""
        if self.all_fit:
            return True
        needed = self.scale * sum(self.needs(other) for other in running)
        admitted = self.controller.admits(len(running), needed, self.scale * self.needs(request), self.frames)
        self.counters["refused"] += not admitted
        return admitted

    def observe(self, running: Sequence[Request]) -> int:
        """Take what was counted since the last time, and act; call it when it is `due`.

        Parameters
        ----------
        running
            Requests that run, equal on every rank.

        Returns
        -------
        int
            How many of them are to pause.
        """
        steps = self.table.activity.steps
        self._next = steps + COUNTED_EVERY
        self._take(running)
        before = self.controller.factor, self.controller.limit
        smaller = max(before[0] * SHRINK, self.controller.rules.least_factor)
        can_shrink = any(
            self._bounds(request, smaller) < self._bounds(request, before[0]) for request in running
        )
        action = Action.NONE
        if not self.all_fit:
            seen = Observation(self.hit_rate, self.total, self.frames, len(running), can_shrink)
            action = self.controller.observe(seen)
        if action is Action.NONE:
            return 0
        if (self.controller.factor, self.controller.limit) != before:
            self.counters[action.name.lower()] += 1
            self._log(action, before, len(running))
        if self.controller.factor != before[0]:
            self.budget.shrink(self.controller.factor)
            self._resized = steps
        return max(len(running) - (self.controller.limit or 0), 0) if action is Action.PAUSE else 0

    def _bounds(self, request: Request, factor: float) -> tuple[int, int]:
        """Cap and limit with a budget factor: a smaller one shrinks neither, the limit, or both."""
        return self.budget.bounds_of(self._pages(request), factor, request.budget)

    def _pages(self, request: Request) -> int:
        return request.tokens // self.page_size + 1

    def _take(self, running: Sequence[Request]) -> None:
        """Learn what was counted last, as all ranks agree on it."""
        steps = self.table.activity.steps
        self._known = {
            request.rid: self._known.get(request.rid) or _Known(since=steps) for request in running
        }
        self.sets.collect()
        latest = self.sets.latest
        if latest is not None and latest is not self._seen:
            self._learn(latest)
        spread = shared = total = UNKNOWN
        if self._seen is not None and self._seen.total.any():
            layers = self._seen.total.mean(1)
            total, mean = float(layers.max()), float(layers.mean())
            spread, shared = total / mean, mean / sum(self._measured.values())
        rate = UNKNOWN if self._rate is None else -self._rate
        measured = [self._measured.get(request.rid, UNKNOWN) for request in running]
        values = [rate, total, spread, shared, *measured]
        if self.agree is not None:
            values = self.agree(torch.tensor(values, dtype=torch.float64)).tolist()
        rate, total, spread, shared, *measured = values
        self.hit_rate = None if rate == UNKNOWN else -rate
        if total != UNKNOWN:
            self.total, self.scale = total, spread * shared
        for request, pages in zip(running, measured, strict=True):
            if pages != UNKNOWN:
                self._known[request.rid].measured = pages
        self._measure_growth(running)

    def _learn(self, count: WorkingSetCount) -> None:
        """Keep this rank's part of a count: working sets, and the hit rate since the one before.

        Requests that were not in that one are left out: they begin cold, or come back with what they counted before.
        """
        self._seen = count
        means = count.requests.mean((1, 2)).tolist()
        self._measured = dict(zip(count.rids, means, strict=True))
        if count.hits is None:
            self._rate = None
            return
        hits = selected = 0
        totals = {
            rid: (int(hit), int(taken)) for rid, hit, taken in zip(count.rids, *count.hits, strict=True)
        }
        for rid, (hit, taken) in totals.items():
            before = self._hits.get(rid)
            if before is not None and before[1] <= taken:
                hits, selected = hits + hit - before[0], selected + taken - before[1]
        self._hits = totals
        self._rate = hits / selected if selected else None

    def _is_settled(self, request: Request) -> bool:
        """Whether a request has run for as many steps as working sets are counted over."""
        known = self._known.get(request.rid)
        return known is not None and self.table.activity.steps - known.since >= self.sets.steps

    def _measure_growth(self, running: Sequence[Request]) -> None:
        """Average working set over cap, unless budgets changed within the steps that working sets are of."""
        if self.table.activity.steps - self._resized < self.sets.steps:
            return
        working_sets, caps = 0.0, 0
        for request in running:
            measured, sparse = (
                self._known[request.rid].measured,
                self._pages(request) > self.budget.dense_pages,
            )
            if sparse and measured is not None and self._is_settled(request):
                working_sets, caps = working_sets + measured, caps + self.cap(request)
        if caps:
            self.growth += GROWTH_WEIGHT * (working_sets / caps - self.growth)

    def _log(self, action: Action, before: tuple[float, int | None], running: int) -> None:
        if not self.logs:
            return
        rate = "-" if self.hit_rate is None else f"{self.hit_rate:.2f}"
        limits = ["none" if limit is None else str(limit) for limit in (before[1], self.controller.limit)]
        text = "Thrash is over" if action.takes_back else "Frames thrash"
        logger.log(
            logging.INFO if action.takes_back else logging.WARNING,
            "rheo: %s: %s. #running-req: %d, hit rate: %s, working sets: %.0f pages, frames: %d, "
            "budget factor: %.2f -> %.2f, most running: %s -> %s",
            text,
            action.value,
            running,
            rate,
            self.total,
            self.frames,
            before[0],
            self.controller.factor,
            *limits,
        )

    def report(self, running: Sequence[Request]) -> dict[str, Any]:
        """State as plain data: what is needed of the frames, the controller's state, counters of what it did."""
        requests = [
            {"rid": request.rid, "frames_needed": round(self.needs(request), 1)} for request in running
        ]
        return {
            "frames": self.frames,
            "frames_needed": round(self.scale * sum(self.needs(request) for request in running), 1),
            "overcommit": self.controller.rules.overcommit,
            "growth": round(self.growth, 3),
            "shared_scale": round(self.scale, 3),
            "hit_rate": None if self.hit_rate is None else round(self.hit_rate, 4),
            "budget_factor": self.controller.factor,
            "most_running": self.controller.limit,
            "counters": dict(self.counters),
            "requests": requests,
        }
