"""statistics: how often decode steps come back to the pages that earlier steps selected."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from rheo_kernels.reference.select import select

LAGS = (1, 2, 4, 8, 16, 32, 64)
WARM_UP_STEPS = 32

Booleans = npt.NDArray[np.bool_]


def retrieved_pages(
    scores: torch.Tensor, num_pages: torch.Tensor, budget: float, sink_pages: int, window_pages: int
) -> Booleans:
    """`retrieved_mask` in numpy, ``[C, steps, M]``."""
    return retrieved_mask(scores, num_pages, budget, sink_pages, window_pages).cpu().numpy()


def retrieved_mask(
    scores: torch.Tensor, num_pages: torch.Tensor, budget: float, sink_pages: int, window_pages: int
) -> torch.Tensor:
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
    torch.Tensor
        ``[C, steps, M]``, bool, on the device of the scores.
    """
    steps, caches, columns = scores.shape
    share = torch.ceil(num_pages.double() * budget).to(torch.int32)
    width = max(int(share.max()), sink_pages + window_pages)
    chosen = select(
        scores, num_pages, share[:, None].expand(steps, caches), sink_pages, window_pages, width
    ).long()
    selected = torch.zeros((steps, caches, columns + 1), dtype=torch.bool, device=scores.device)
    selected.scatter_(2, torch.where(chosen < 0, columns, chosen), True)
    position = torch.arange(columns, device=scores.device)
    forced = (position < sink_pages) | (position >= num_pages[:, None] - window_pages)
    return (selected[:, :, :columns] & ~forced[:, None]).transpose(0, 1)


def reselection(retrieved: Booleans | torch.Tensor, lag: int) -> float:
    """Share of a step's retrieved pages that the step `lag` earlier retrieved too, over all steps and caches."""
    now, before = retrieved[:, lag:], retrieved[:, :-lag]
    return float((now & before).sum() / now.sum())


def reselection_by_cache(retrieved: Booleans | torch.Tensor, lag: int) -> npt.NDArray[np.float64]:
    """`reselection` of each cache, ``[C]``."""
    now, before = retrieved[:, lag:], retrieved[:, :-lag]
    again, all_now = (now & before).sum((1, 2)), now.sum((1, 2))
    if isinstance(again, torch.Tensor):
        again, all_now = again.cpu().numpy(), all_now.cpu().numpy()
    return again / all_now


def never_selected(retrieved: Booleans) -> float:
    """Share of pages that no step retrieves, over all caches; pages that are always selected count as such."""
    return float(1 - retrieved.any(1).mean())
