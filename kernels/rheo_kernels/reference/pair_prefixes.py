"""pair_prefixes: which requests of a batch begin with the same pages, two by two."""

from __future__ import annotations

from itertools import pairwise

import torch

from rheo_kernels.types.estimates import PAGES_PER_BLOCK
from rheo_kernels.types.prefix_pairs import PrefixPairs


def pair_prefixes(
    pages: torch.Tensor, seq_lens: torch.Tensor, page_size: int, out: PrefixPairs | None = None
) -> PrefixPairs:
    """Pair requests that share leading units of `PAGES_PER_BLOCK` full pages.

    Requests are sorted by their full pages, so that those that share most are next to each other. Neighbours are cut
    apart where they share no unit, or less than half of what one of them shares with its other neighbour; what is not
    cut apart is paired from its first one on.

    Parameters
    ----------
    pages
        Page lists, ``[B, M]``, int32. Two lists that have a page in the same place have the same pages in front of it,
        as paths from the root of one tree do.
    seq_lens
        Tokens of each request, ``[B]``, integer; 0 in a padding row.
    page_size
        Tokens per page.
    out
        Result buffers.

    Returns
    -------
    PrefixPairs
        ``out``.
    """
    batch = len(pages)
    if out is None:
        out = PrefixPairs.allocate(batch, pages.device)
    out.clear()
    lists = [
        row[: length // page_size] for row, length in zip(pages.tolist(), seq_lens.tolist(), strict=True)
    ]
    order = sorted(range(batch), key=lambda request: (lists[request], request))
    shared = [0, *(_shared_units(lists[one], lists[other]) for one, other in pairwise(order)), 0]
    cut = [
        units == 0 or 2 * units < max(shared[max(place - 1, 0)], shared[min(place + 1, batch)])
        for place, units in enumerate(shared)
    ]
    place = 0
    while place < batch:
        if cut[place + 1]:
            place += 1
            continue
        for one, other in ((place, place + 1), (place + 1, place)):
            out.partner[order[one]] = order[other]
            out.units[order[one]] = shared[place + 1]
        place += 2
    return out


def _shared_units(one: list[int], other: list[int]) -> int:
    equal = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        equal += 1
    return equal // PAGES_PER_BLOCK
