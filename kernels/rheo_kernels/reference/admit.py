"""admit: frames for missed pages, taken from the least valuable resident ones."""

from __future__ import annotations

import torch

from rheo_kernels.types import Admitted

NEVER_EVICT = float("inf")


def admit(
    candidates: torch.Tensor,
    candidate_values: torch.Tensor,
    page_table: torch.Tensor,
    page_of: torch.Tensor,
    frame_values: torch.Tensor,
) -> Admitted:
    """Give candidates frames and publish them in the page table, keeping the most valuable pages resident.

    Per row the best candidate meets the least valuable frame, the second best the next, and so on; a
    candidate is admitted while it is worth strictly more than the page it would displace. Free frames are
    worth ``-inf`` and pinned ones ``NEVER_EVICT``.

    Parameters
    ----------
    candidates
        Logical pages, ``[R, C]``; -1 and the padding page 0 = none; repeats and resident pages are ignored. A row is
        one KV head of a layer.
    candidate_values
        What each candidate is worth, ``[R, C]``, float32.
    page_table
        Page table, ``[R, N]``, int32; updated.
    page_of
        Page in each frame, ``[R, F]``, int32, -1 = free; updated.
    frame_values
        What each frame's page is worth, ``[R, F]``, float32.

    Returns
    -------
    Admitted
        The new residents. Their frames hold the previous pages' data until they are loaded.
    """
    pages = candidates.long()
    resident = page_table.gather(1, pages.clamp(min=0)) >= 0
    by_page = pages.argsort(dim=1, stable=True)
    ordered = pages.gather(1, by_page)
    repeat = torch.zeros_like(resident)
    repeat[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = torch.empty_like(repeat).scatter_(1, by_page, repeat)
    worth = candidate_values.masked_fill((pages <= 0) | resident | repeated, -torch.inf)

    width = min(pages.shape[1], page_of.shape[1])
    best_worth, best = worth.topk(width, dim=1)
    least_worth, least = frame_values.masked_fill(page_of < 0, -torch.inf).topk(width, dim=1, largest=False)
    taken = (best_worth > least_worth) & (best_worth > -torch.inf)
    row, column = taken.nonzero(as_tuple=True)
    page = pages[row, best[row, column]]
    frame = least[row, column]

    displaced = page_of[row, frame].long()
    had_page = displaced >= 0
    page_table[row[had_page], displaced[had_page]] = -1
    page_of[row, frame] = page.to(torch.int32)
    page_table[row, page] = frame.to(torch.int32)
    admitted = pages.gather(1, best).to(torch.int32)
    return Admitted(admitted, least.to(torch.int32), taken.sum(1, dtype=torch.int32))
