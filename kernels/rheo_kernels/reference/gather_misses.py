"""gather_misses: one step's misses, and runners-up after them, as candidates for admission."""

from __future__ import annotations

import numpy as np
import torch

PHILOX_ROUNDS = 10


def gather_misses(
    misses: torch.Tensor,
    num_hits: torch.Tensor,
    num_selected: torch.Tensor,
    worth: torch.Tensor,
    boost: float,
    columns: int,
    most: int | None = None,
    runners_up: tuple[torch.Tensor, torch.Tensor] | None = None,
    load_quota: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """List misses per KV head, all requests together in order, and runners-up after them.

    Parameters
    ----------
    misses
        Missed pages of each request, ``[B, H, S]``, int32, in columns ``[num_hits, num_selected)``.
    num_hits, num_selected
        ``[B, H]``, int32.
    worth
        What each page is worth in this layer, ``[H, N]``, float32.
    boost
        Added to the value of every miss, as they were selected.
    columns
        ``C``: candidates of a KV head at most; the last ones are left out.
    most
        Misses of each request that are listed, the first ones; all by default.
    runners_up
        Pages that have no frame and might be selected next, ``[B, H, R]``, int32, and how many, ``[B, H]``, int32.
    load_quota
        Which candidates to offer where there is not time to load all, ``[3]``, int32: of every request's last
        ``load_quota[0] / 256`` misses only ``load_quota[1] / 65536``, and of the runners-up ``load_quota[2] / 65536``,
        drawn anew in every step. The columns of the others are -1.
    step
        Number of the step, scalar, int32, if there is a quota.

    Returns
    -------
    candidates, values, counts : torch.Tensor
        ``[H, C]``, int32, -1 from ``counts`` on; ``[H, C]``, float32; and ``[H]``, int32.
    """
    batch, heads, width = misses.shape
    candidates = torch.full((heads, columns), -1, dtype=torch.int32, device=misses.device)
    values = torch.zeros((heads, columns), device=misses.device)
    counts = torch.zeros(heads, dtype=torch.int32, device=misses.device)
    for head in range(heads):
        lists: list[tuple[torch.Tensor, int, int, float]] = []
        for request in range(batch):
            first = int(num_hits[request, head])
            count = min(int(num_selected[request, head]) - first, width if most is None else most)
            certain, drawn = count, 0
            if load_quota is not None:
                certain, drawn = count - (count * int(load_quota[0]) >> 8), int(load_quota[1])
            lists.append((misses[request, head, first : first + count], certain, drawn, boost))
        if runners_up is not None:
            for pages, count in zip(runners_up[0][:, head], runners_up[1][:, head].tolist(), strict=True):
                certain, drawn = (count, 0) if load_quota is None else (0, int(load_quota[2]))
                lists.append((pages[:count], certain, drawn, 0.0))
        listed = torch.cat([pages for pages, *_ in lists])[:columns]
        offered = torch.cat([_offered(step, pages, *rule) for pages, *rule, _ in lists])[:columns]
        boosts = torch.cat([torch.full(pages.shape, add) for pages, *_, add in lists])[:columns]
        counts[head] = count = listed.numel()
        candidates[head, :count] = listed.where(offered, -1)
        values[head, :count] = worth[head, listed.long()] + boosts.to(worth.device)
    return candidates, values, counts


def _offered(step: torch.Tensor | None, pages: torch.Tensor, certain: int, quota: int) -> torch.Tensor:
    """The first ``certain`` pages, and ``quota / 65536`` of the others, by a draw that step and page decide."""
    position = torch.arange(pages.numel(), device=pages.device)
    if step is None:
        return position < certain
    drawn = torch.from_numpy(draw(int(step), pages.cpu().numpy()).astype(np.int64)).to(pages.device)
    return (position < certain) | (drawn < quota)


def draw(seed: int, counters: np.ndarray) -> np.ndarray:
    """16 random bits for each counter: the upper half of the first word of Philox4x32-10 (Salmon et al., SC 2011)."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a, b = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    key = [seed & 0xFFFFFFFF, 0]
    c0 = counters.astype(np.uint64)
    c1, c2, c3 = np.zeros_like(c0), np.zeros_like(c0), np.zeros_like(c0)
    for _ in range(PHILOX_ROUNDS):
        from_c0, from_c2 = a * c0, b * c2
        c0 = (from_c2 >> half) ^ c1 ^ np.uint64(key[0])
        c2 = (from_c0 >> half) ^ c3 ^ np.uint64(key[1])
        c1, c3 = from_c2 & low, from_c0 & low
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c0 >> np.uint64(16) & np.uint64(0xFFFF)
