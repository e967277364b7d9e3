"""mass: the attention that decode steps pay to each page, and how much of it a selection covers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from locality.statistics import Booleans
from locality.trace import Trace
from rheo_kernels.reference.page_mass import page_mass


def page_masses(trace: Trace, page_size: int) -> torch.Tensor:
    """Share of each step's attention that every page draws, mean over the GQA group.

    Parameters
    ----------
    trace
        What the model did.
    page_size
        Tokens a page.

    Returns
    -------
    torch.Tensor
        ``[steps, L, H, M]``, float32; ``-inf`` for pages that a step does not have yet.
    """
    steps, layers, _, dim = trace.queries.shape
    heads, total = trace.keys.shape[1:3]
    width = -(-total // page_size)
    masses = torch.empty((steps, layers, heads, width))
    for layer in range(layers):
        keys = trace.keys[layer].transpose(0, 1)
        for step in range(steps):
            tokens = total - steps + 1 + step
            masses[step, layer] = page_mass(
                trace.queries[step, layer][None],
                keys[:tokens],
                torch.tensor([0, 1], dtype=torch.int32),
                torch.tensor([0, tokens], dtype=torch.int32),
                dim**-0.5,
                page_size,
                1,
                width,
            )[0]
    return masses


def with_forced(retrieved: Booleans, num_pages: torch.Tensor, sink_pages: int, window_pages: int) -> Booleans:
    """A selection with the pages that are always selected.

    Parameters
    ----------
    retrieved
        Of `statistics.retrieved_pages`, ``[C, steps, M]``.
    num_pages
        Pages at each step, ``[steps]``, int32.
    sink_pages, window_pages
        Always-selected pages at the start and at the end.
    """
    position = torch.arange(retrieved.shape[2])
    count = num_pages[:, None]
    forced = (position < sink_pages) | ((position >= count - window_pages) & (position < count))
    return retrieved | forced.numpy()


def covered(masses: npt.NDArray[np.float32], selected: Booleans) -> float:
    """Share of the attention that selected pages draw, mean over caches and steps; both ``[C, steps, M]``."""
    return float(np.where(selected, masses, 0.0).sum(2).mean())
