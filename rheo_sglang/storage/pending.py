"""PendingPages: the bounded queue of pages to be written, the most important prefix first."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Segment:
    """Consecutive pages of one prefix that are yet to be written.

    Attributes
    ----------
    keys
        Storage keys, ``[X]``, in the order of the prefix.
    pages
        Logical pages, ``[X]``, int64.
    generations
        Their generations when they were offered, ``[X]``: a page with another one since was freed.
    value
        Importance when it was read last; a segment nobody has looked at counts as important.
    """

    keys: list[str]
    pages: torch.Tensor
    generations: torch.Tensor
    value: float = field(default=1.0)

    def __len__(self) -> int:
        return len(self.keys)

    def divide(self, count: int) -> tuple[Segment, Segment]:
        """Its first pages, and the others."""
        return (
            Segment(self.keys[:count], self.pages[:count], self.generations[:count], self.value),
            Segment(self.keys[count:], self.pages[count:], self.generations[count:], self.value),
        )


class PendingPages:
    """Segments of prefixes; offering never waits for whoever takes them.

    A prefix is of use from its first page on, so a segment is taken from its beginning, and what does not fit is
    dropped from the end of the least important one.

    Parameters
    ----------
    limit
        Pages that wait at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._segments: list[Segment] = []
        self._pages = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._pages

    def offer(self, segment: Segment) -> int:
        """Add a segment; returns how many pages, of this or of other segments, were dropped."""
        if not len(segment):
            return 0
        dropped = 0
        with self._changed:
            self._segments.append(segment)
            self._pages += len(segment)
            while self._pages > self.limit:
                place = min(
                    range(len(self._segments)), key=lambda place: (self._segments[place].value, -place)
                )
                least = self._segments[place]
                surplus = min(self._pages - self.limit, len(least))
                self._put(place, least.divide(len(least) - surplus)[0])
                dropped += surplus
            self._changed.notify()
        return dropped

    def take(
        self, most: int, value: Callable[[torch.Tensor], float], timeout: float | None = None
    ) -> Segment | None:
        """The first pages of the most important segment.

        Parameters
        ----------
        most
            Pages to take at most.
        value
            Importance of pages, ``[X]``, int64; NaN counts as none.
        timeout
            Seconds to wait for a segment.

        Returns
        -------
        Segment or None
            None if none came in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._segments, timeout):
                return None
            waiting = list(self._segments)
        for segment in waiting:
            found = value(segment.pages)
            segment.value = 0.0 if math.isnan(found) else found
        with self._changed:
            if not self._segments:
                return None
            place = max(range(len(self._segments)), key=lambda place: (self._segments[place].value, -place))
            taken, left = self._segments[place].divide(most)
            self._put(place, left)
            return taken

    def clear(self) -> int:
        """Forget all segments; returns how many pages they had."""
        with self._changed:
            pages, self._pages = self._pages, 0
            self._segments = []
            return pages

    def _put(self, place: int, segment: Segment) -> None:
        """Put a shorter segment in the place of one; none if it is empty."""
        self._pages += len(segment) - len(self._segments[place])
        self._segments[place : place + 1] = [segment] if len(segment) else []
