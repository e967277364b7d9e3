"""replay: which pages caches hold while decode steps look pages up, under any tiering policy or Belady's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from locality.statistics import (
    LAGS,
    WARM_UP_STEPS,
    Booleans,
    never_selected,
    reselection,
    reselection_by_cache,
    retrieved_pages,
)
from rheo_sglang.tiering import POLICIES, Activity, PolicyInputs

CACHE_SIZES = (1.0, 1.25, 1.5, 2.0)
SINK_PAGES, WINDOW_PAGES = 1, 2
SPREAD_LAG = 16
"""Steps between the two whose re-selection is compared from cache to cache."""
BELADY = "belady"


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
        ``"belady"``, the optimum: the page next retrieved latest leaves. Else a tiering policy that needs no scores.

    Raises
    ------
    ValueError
        If the cache cannot hold what one step retrieves.
    ConfigError
        If the policy is unknown.
    """
    worths = belady(retrieved) if policy == BELADY else policy_worths(policy, retrieved)
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


def policy_worths(
    name: str,
    retrieved: Booleans,
    scores: torch.Tensor | None = None,
    num_pages: torch.Tensor | None = None,
    importance_alpha: float = 0.3,
) -> Iterator[npt.NDArray[np.float32]]:
    """What a tiering policy of `rheo_sglang.tiering` says that pages are worth after every step, ``[C, M]``.

    Parameters
    ----------
    name
        Of the policy.
    retrieved
        Pages that each step selects, ``[C, steps, M]``, bool.
    scores
        Page scores, ``[steps, C, M]``, float32; equal for all pages by default.
    num_pages
        Pages at each step, ``[steps]``, int32; ``M`` by default.
    importance_alpha
        Weight of the newest step in an average.
    """
    caches, steps, columns = retrieved.shape
    activity = Activity(columns + 1, "cpu")
    policy = POLICIES[name](PolicyInputs(1, caches, columns + 1, activity, importance_alpha))
    pages = torch.arange(1, columns + 1, dtype=torch.int32)
    if scores is None:
        scores = torch.zeros((1, caches, columns)).expand(steps, -1, -1)
    if num_pages is None:
        num_pages = torch.full((steps,), columns, dtype=torch.int32)
    for step in range(steps):
        activity.begin_step()
        policy.begin_step()
        activity.list_pages(pages[None], num_pages[step : step + 1])
        chosen = torch.where(torch.from_numpy(retrieved[:, step]), pages, -1)[None]
        selected = Selection(chosen, torch.full_like(chosen, -1), chosen)
        policy.on_step(0, scores[step : step + 1], selected, pages[None], num_pages[step : step + 1])
        yield policy.worth[0, :, 1:].numpy()


@dataclass(frozen=True)
class Selection:
    """A selection as policies read it, of which no page has a frame."""

    pages: torch.Tensor
    hits: torch.Tensor
    misses: torch.Tensor


def belady(retrieved: Booleans) -> Iterator[npt.NDArray[np.int32]]:
    """Worths ``[C, M]`` after every step by which the page next retrieved latest leaves (Belady 1966)."""
    return iter(-_next_use(retrieved).swapaxes(0, 1))


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


def describe_budgets(
    scores: torch.Tensor, num_pages: torch.Tensor, budgets: tuple[float, ...]
) -> dict[str, Any]:
    """`describe` by budget.

    Parameters
    ----------
    scores
        Page scores, ``[steps, C, M]``, float32.
    num_pages
        Pages at each step, ``[steps]``, int32.
    budgets
        Shares of the pages to select, `SINK_PAGES` and `WINDOW_PAGES` included.
    """
    result = {}
    for budget in budgets:
        retrieved = retrieved_pages(scores, num_pages, budget, SINK_PAGES, WINDOW_PAGES)
        spread = round(float(reselection_by_cache(retrieved, SPREAD_LAG).std()), 4)
        result[str(budget)] = {
            "retrieved_pages": round(float(retrieved.sum(2).mean()), 2),
            **describe(retrieved),
            f"reselection_{SPREAD_LAG}_deviation_of_heads": spread,
        }
    return result
