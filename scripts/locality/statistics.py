"""statistics: how often decode steps come back to the pages that earlier steps selected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rheo_kernels.reference.importance import rank_normalise, update_importance
from rheo_kernels.reference.select import select

LAGS = (1, 2, 4, 8, 16, 32, 64)
CACHE_SIZES = (1.0, 1.25, 1.5, 2.0)
WARM_UP_STEPS = 32

Booleans = npt.NDArray[np.bool_]


def retrieved_pages(
    scores: torch.Tensor, num_pages: torch.Tensor, budget: float, sink_pages: int, window_pages: int
) -> Booleans:
    """Pages that each step selects for their score: the selection without sink and window.

    Parameters
    ----------
    scores
        Page scores, ``[steps, C, M]``, float32; `C` counts caches, one for each KV head of each layer.
    num_pages
        Pages at each step, ``[steps]``, int32.
    budget
        Share of the pages to select, sink and window included.
    sink_pages, window_pages
        Always-selected pages at the start and at the end.

    Returns
    -------
    bool array ``[C, steps, M]``
    """
    steps, caches, columns = scores.shape
    share = torch.ceil(num_pages.double() * budget).to(torch.int32)
    width = max(int(share.max()), sink_pages + window_pages)
    chosen = select(
        scores, num_pages, share[:, None].expand(steps, caches), sink_pages, window_pages, width
    ).long()
    selected = torch.zeros((steps, caches, columns + 1), dtype=torch.bool)
    selected.scatter_(2, torch.where(chosen < 0, columns, chosen), True)
    position = torch.arange(columns)
    forced = (position < sink_pages) | (position >= num_pages[:, None] - window_pages)
    return (selected[:, :, :columns] & ~forced[:, None]).transpose(0, 1).numpy()


def reselection(retrieved: Booleans, lag: int) -> float:
    """Share of a step's retrieved pages that the step `lag` earlier retrieved too, over all steps and caches."""
    now, before = retrieved[:, lag:], retrieved[:, :-lag]
    return float((now & before).sum() / now.sum())


def reselection_by_cache(retrieved: Booleans, lag: int) -> npt.NDArray[np.float64]:
    """`reselection` of each cache, ``[C]``."""
    now, before = retrieved[:, lag:], retrieved[:, :-lag]
    return (now & before).sum((1, 2)) / now.sum((1, 2))


def never_selected(retrieved: Booleans) -> float:
    """Share of pages that no step retrieves, over all caches; pages that are always selected count as such."""
    return float(1 - retrieved.any(1).mean())


def hit_rate(retrieved: Booleans, cache_size: float, policy: str) -> float:
    """Hit rate of caches that hold `cache_size` times the pages retrieved at a step.

    The first `WARM_UP_STEPS` steps fill the caches and are not counted.

    Parameters
    ----------
    retrieved
        ``[C, steps, M]``, bool.
    cache_size
        Capacity relative to the largest number of pages retrieved at one step, rounded up.
    policy
        ``"lru"``: the page retrieved longest ago leaves. ``"belady"``: the page next retrieved latest leaves.

    Raises
    ------
    ValueError
        If the cache cannot hold what one step retrieves, or the policy is unknown.
    """
    if policy not in ("lru", "belady"):
        raise ValueError(f"unknown policy {policy!r}; allowed: 'lru', 'belady'")
    worths = last_use(retrieved) if policy == "lru" else iter(-_next_use(retrieved).swapaxes(0, 1))
    lookups = retrieved[:, WARM_UP_STEPS:]
    hits = lookups & residents(retrieved, cache_size, worths)[:, WARM_UP_STEPS:]
    return int(hits.sum()) / int(lookups.sum())


def residents(
    retrieved: Booleans,
    cache_size: float,
    worths: Iterator[npt.NDArray[Any]],
    ahead: Booleans | None = None,
) -> Booleans:
    """Pages that caches hold when each step looks its pages up, ``[C, steps, M]``, bool.

    One cache for each row. A step's pages are looked up together, then all are in the cache, and as many other
    pages as necessary leave it, those of least worth first, any of those of equal worth.

    Parameters
    ----------
    retrieved
        ``[C, steps, M]``, bool.
    cache_size
        Capacity relative to the largest number of pages retrieved at one step, rounded up.
    worths
        After every step the worth of all pages, ``[C, M]``, between ``-steps`` and ``steps - 1``.
    ahead
        Pages that may enter after each step although it did not retrieve them, ``[C, steps, M]``; none by default.

    Raises
    ------
    ValueError
        If the cache cannot hold what one step retrieves.
    """
    if cache_size < 1:
        raise ValueError(
            f"cache size {cache_size} is too small; allowed: 1 or more times the retrieved pages"
        )
    caches, steps, columns = retrieved.shape
    capacity = min(math.ceil(cache_size * retrieved.sum(2).max()), columns)
    found = np.zeros_like(retrieved)
    cached = np.zeros((caches, columns), dtype=bool)
    for step, worth in zip(range(steps), worths, strict=True):
        found[:, step] = cached
        wanted = retrieved[:, step]
        if ahead is not None:
            cached = cached | ahead[:, step]
        worth = np.where(wanted, steps, np.where(cached, worth, -2 * steps))
        order = np.argpartition(-worth, capacity - 1, axis=1)[:, :capacity]
        kept = np.zeros_like(cached)
        np.put_along_axis(kept, order, True, axis=1)
        cached = kept & (cached | wanted)
    return found


def last_use(retrieved: Booleans) -> Iterator[npt.NDArray[np.int64]]:
    """LRU's worth of pages ``[C, M]`` after every step: the last step that retrieved them, -1 where none did."""
    caches, steps, columns = retrieved.shape
    latest = np.full((caches, columns), -1)
    for step in range(steps):
        latest[retrieved[:, step]] = step
        yield latest


def importance(
    scores: torch.Tensor, num_pages: torch.Tensor, alpha: float
) -> Iterator[npt.NDArray[np.float32]]:
    """Importance of pages ``[C, M]`` after every step, none before the first.

    Parameters
    ----------
    scores
        Page scores, ``[steps, C, M]``, float32, ``-inf`` past the last page.
    num_pages
        Pages at each step, ``[steps]``, int32.
    alpha
        Weight of the newest step.
    """
    steps, caches, columns = scores.shape
    pages = torch.arange(columns, dtype=torch.int32)[None]
    worth = torch.zeros((caches, columns))
    for step in range(steps):
        count = num_pages[step : step + 1]
        ranks = rank_normalise(scores[step : step + 1], count)
        update_importance(worth, ranks, pages, count, alpha)
        yield worth.numpy()


def _next_use(retrieved: Booleans) -> npt.NDArray[np.int32]:
    """First later step that retrieves each page, ``[C, steps, M]``; `steps` where there is none."""
    caches, steps, columns = retrieved.shape
    times = np.empty((caches, steps, columns), dtype=np.int32)
    upcoming = np.full((caches, columns), steps)
    for step in range(steps - 1, -1, -1):
        times[:, step] = upcoming
        upcoming = np.where(retrieved[:, step], step, upcoming)
    return times


def describe(retrieved: Booleans) -> dict[str, Any]:
    """All statistics of one set of traces, rounded to four decimals."""
    return {
        "reselection": {str(lag): round(reselection(retrieved, lag), 4) for lag in LAGS},
        "never_selected": round(never_selected(retrieved), 4),
        "hit_rate": {
            policy: {str(size): round(hit_rate(retrieved, size, policy), 4) for size in CACHE_SIZES}
            for policy in ("lru", "belady")
        },
    }
