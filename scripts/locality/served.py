"""served: page scores that a server's trace has of its long answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from rheo_sglang.traces import Trace
from rheo_sglang.traces.events import Step


def served_scores(trace: Trace, steps: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Scores of the first steps of every request that has as many, one request after the other.

    Parameters
    ----------
    trace
        The trace. A request's steps are those that select; dense ones have no scores.
    steps
        Decode steps, 1 or more.

    Yields
    ------
    request : str
        Its id.
    scores : torch.Tensor
        Page scores, ``[steps, L * H, M]``, float32; ``-inf`` for pages that a step does not have yet.
    num_pages : torch.Tensor
        Pages at each step, ``[steps]``, int32.
    """
    found: defaultdict[str, list[tuple[int, torch.Tensor]]] = defaultdict(list)
    told: set[str] = set()
    for event in trace.events():
        if not isinstance(event, Step) or event.scores is None:
            continue
        for index, request in enumerate(event.requests):
            if request in told:
                continue
            kept = found[request]
            pages = -(-int(event.tokens[index]) // trace.page_size)
            rows = event.scores[:, index, :, :pages].reshape(-1, pages)
            kept.append((pages, torch.from_numpy(np.ascontiguousarray(rows))))
            if len(kept) == steps:
                told.add(request)
                yield request, *_padded(found.pop(request))


def _padded(kept: list[tuple[int, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    num_pages = torch.tensor([pages for pages, _ in kept], dtype=torch.int32)
    scores = torch.full((len(kept), len(kept[0][1]), int(num_pages.max())), -torch.inf)
    for row, (pages, rows) in zip(scores, kept, strict=True):
        row[:, :pages] = rows
    return scores, num_pages
