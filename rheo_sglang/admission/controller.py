"""Controller: decides from working sets and hit rates who may join, how far budgets shrink, and who pauses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

SHRINK = 0.75
"""Factor on budgets of each step down, and its inverse of each step up."""
MARGIN = 0.1
"""By which the hit rate must exceed the floor before anything is taken back."""
PATIENCE = 3
"""Observations of thrash in a row before the controller acts."""
RECOVERY = 8
"""Observations in a row without thrash before it takes one action back."""
LONGEST_RECOVERY = 64
"""The same after relapses."""


class Action(Enum):
    """What the controller did."""

    NONE = "none"
    SHRINK = "shrink budgets"
    PAUSE = "pause a request"
    RESUME = "let a request more run"
    GROW = "grow budgets"

    @property
    def takes_back(self) -> bool:
        """Whether it undoes an earlier one."""
        return self in (Action.RESUME, Action.GROW)


@dataclass(frozen=True)
class Rules:
    """Settings.

    Attributes
    ----------
    overcommit
        Working sets may take up to so many times the frames.
    hit_rate_floor
        A lower hit rate is thrash, where working sets exceed the frames.
    least_factor
        The smallest factor on budgets, in (0, 1].
    """

    overcommit: float
    hit_rate_floor: float
    least_factor: float


@dataclass(frozen=True)
class Observation:
    """What was seen over the last steps.

    Attributes
    ----------
    hit_rate
        Hits / selected pages, None if nothing was selected or counted.
    working_sets
        Pages of all running requests, in the layer where they are most.
    frames
        Of a layer and KV head.
    running
        Requests.
    can_shrink
        Whether a smaller factor would make any budget smaller.
    """

    hit_rate: float | None
    working_sets: float
    frames: int
    running: int
    can_shrink: bool


class Controller:
    """A state machine over observations; nothing but these and the rules decides.

    Under thrash, `PATIENCE` observations in a row of a hit rate below the floor while the working sets exceed the
    frames, budgets shrink by `SHRINK`, down to the least factor; then as many requests may run as do, less one, and the
    youngest pauses. `RECOVERY` observations in a row without thrash and a hit rate `MARGIN` above the floor take one
    action back, pauses first. Where that brings thrash back, the next attempt waits twice as long. A request that runs
    alone is left alone.

    Parameters
    ----------
    rules
        Settings.

    Attributes
    ----------
    factor
        On budgets, in [least factor, 1].
    limit
        Most requests that may run, 1 or more; None: no limit.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.factor = 1.0
        self.limit: int | None = None
        self._most = 0
        self._bad = 0
        self._good = 0
        self._wait = RECOVERY
        self._last = Action.NONE

    @property
    def constrained(self) -> bool:
        """Whether anything is to be taken back."""
        return self.limit is not None or self.factor < 1

    def admits(self, running: int, working_sets: float, needed: float, frames: int) -> bool:
        """Whether a request may join.

        Parameters
        ----------
        running
            Requests that run or are about to.
        working_sets
            Frames that these need, per layer and KV head.
        needed
            Frames that the one more needs.
        frames
            Of a layer and KV head.
        """
        if running == 0:
            return True
        if self.limit is not None:
            if running >= self.limit:
                return False
        elif self.factor < 1:
            return False
        return working_sets + needed <= self.rules.overcommit * frames

    def observe(self, seen: Observation) -> Action:
        """Learn what the last steps were like, and act if it is time to; `factor` and `limit` are as decided then."""
        crowded = seen.working_sets > seen.frames
        floor, rate = self.rules.hit_rate_floor, seen.hit_rate
        thrash = crowded and rate is not None and rate < floor
        well = not crowded or rate is None or rate >= min(floor + MARGIN, 1.0)
        self._bad = self._bad + 1 if thrash else 0
        self._good = self._good + 1 if well else 0
        action = Action.NONE
        if self._bad >= PATIENCE:
            action = self._back_off(seen)
        elif self.constrained and self._good >= self._wait:
            action = self._take_back()
        elif not self.constrained and self._good >= LONGEST_RECOVERY:
            self._wait, self._last = RECOVERY, Action.NONE
        if action is not Action.NONE:
            self._bad = self._good = 0
            self._last = action
        return action

    def _back_off(self, seen: Observation) -> Action:
        if seen.running <= 1:
            return Action.NONE
        if self._last.takes_back:
            self._wait = min(2 * self._wait, LONGEST_RECOVERY)
        if seen.can_shrink and self.factor > self.rules.least_factor:
            self.factor = max(self.factor * SHRINK, self.rules.least_factor)
            return Action.SHRINK
        self._most = max(self._most, seen.running)
        self.limit = seen.running - 1
        return Action.PAUSE

    def _take_back(self) -> Action:
        if self.limit is None:
            self.factor = min(self.factor / SHRINK, 1.0)
            return Action.GROW
        self.limit += 1
        if self.limit >= self._most:
            self.limit, self._most = None, 0
        return Action.RESUME
