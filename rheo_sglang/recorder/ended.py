"""EndedRequests: counters of the latest requests that ended, reduced on the device and kept in one tensor."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch

KEPT_REQUESTS = 256
"""Ended requests that a report still shows."""
FIELDS = ("hits", "selected", "mass", "mass_samples", "coverage", "grown", "grown_pages")
"""Columns of a reduced row after the hit rates of the layers and of the KV heads."""


class Counts(NamedTuple):
    """Counters of requests, one row each.

    Attributes
    ----------
    rates
        Sum over steps of hits / selected, ``[R, L, H]``, float32.
    hits, selected
        Resident and all selected pages, ``[R, L, H]``, int64.
    mass
        Sum over steps of the attention mass that the selection covered, where it was finite, ``[R, L, H]``, float32;
        None where mass is not recorded.
    mass_samples
        Steps that ``mass`` sums over, ``[R, L, H]``, int32, or None.
    coverage
        Sum over steps of the share of attention that the selection covers by estimate, ``[R, L, H]``, float32; None
        where nothing is estimated.
    grown
        Steps in which more than the budget was allowed, ``[R, L, H]``, int32; None where budgets never grow.
    grown_pages
        How many pages more, summed over steps, ``[R, L, H]``, int64, or None.
    """

    rates: torch.Tensor
    hits: torch.Tensor
    selected: torch.Tensor
    mass: torch.Tensor | None
    mass_samples: torch.Tensor | None
    coverage: torch.Tensor | None
    grown: torch.Tensor | None
    grown_pages: torch.Tensor | None


class Request(NamedTuple):
    """What the host knows of one request, or of a part of one that was retracted and resumed."""

    rid: str
    iterations: int
    listed: int
    """Sum over decode steps of the pages of its whole context."""


def reduce_rows(counts: Counts, rows: torch.Tensor) -> torch.Tensor:
    """Sum the counters of some rows as far as a report needs them.

    Parameters
    ----------
    counts
        Counters of all rows.
    rows
        Rows to reduce, ``[X]``, int64.

    Returns
    -------
    torch.Tensor
        ``[X, L + H + 7]``, float64: rates summed over KV heads, rates summed over layers, then `FIELDS`.
    """
    rates = counts.rates[rows].double()
    totals = [
        torch.zeros(len(rows), dtype=torch.float64, device=rates.device)
        if counter is None
        else counter[rows].double().sum((1, 2))
        for counter in counts[1:]
    ]
    return torch.cat([rates.sum(2), rates.sum(1), torch.stack(totals, 1)], 1)


class EndedRequests:
    """A circular buffer of `KEPT_REQUESTS` reduced rows; what was written first is overwritten first.

    Parameters
    ----------
    layers, kv_heads
        Of the counters.
    device
        Of the counters.
    """

    def __init__(self, layers: int, kv_heads: int, device: torch.device) -> None:
        columns = layers + kv_heads + len(FIELDS)
        self.rows = torch.zeros((KEPT_REQUESTS, columns), dtype=torch.float64, device=device)
        self.requests: deque[Request] = deque(maxlen=KEPT_REQUESTS)
        self._written = 0

    def add(self, requests: list[Request], reduced: torch.Tensor) -> None:
        """Keep requests in the order in which they ended: at most `KEPT_REQUESTS`, ``reduced`` as of `reduce_rows`."""
        positions = (self._written + torch.arange(len(requests), device=self.rows.device)) % KEPT_REQUESTS
        self.rows.index_copy_(0, positions, reduced)
        self.requests.extend(requests)
        self._written += len(requests)

    def latest(self, most: int) -> tuple[list[Request], torch.Tensor]:
        """The ``most`` requests that ended last and their reduced rows, the one that ended first in front."""
        count = min(most, len(self.requests))
        positions = torch.arange(self._written - count, self._written, device=self.rows.device)
        return list(self.requests)[len(self.requests) - count :], self.rows[positions % KEPT_REQUESTS]
