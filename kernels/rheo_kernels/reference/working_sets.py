"""stamp_selected and count_working_sets: which pages steps selected of late, and how many."""

from __future__ import annotations

import torch

from rheo_kernels.types import Stamps


def stamp_selected(pages: torch.Tensor, stamps: Stamps) -> None:
    """Stamp the pages that one layer of a step selected, as ``select_resolve`` does.

    Parameters
    ----------
    pages
        Selected logical pages, ``[B, H, S]``, int32, -1 = none.
    stamps
        This layer's stamps; updated.
    """
    flat = pages.transpose(0, 1).flatten(1)
    index = flat.clamp(min=0).long()
    stamps.selected.scatter_reduce_(1, index, stamps.step.where(flat >= 0, 0).to(torch.int32), "amax")


def count_working_sets(
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    last_active: torch.Tensor,
    stamped: torch.Tensor,
    step: int,
    oldest: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the pages of the running requests that were selected in the last steps. A row is a KV head of a layer.

    Parameters
    ----------
    pages
        Page lists, ``[B, M]``, int32; entries past ``num_pages`` are undefined.
    num_pages
        Pages of each request, ``[B]``, int32; 0 in padded rows.
    last_active
        Step in which a running request last listed each page, ``[N]``, int32.
    stamped
        Step in which each page was selected last, 0 = never, ``[R, N]``, int32.
    step
        Number of the current step, whose requests have been listed.
    oldest
        The first step that counts; 0 counts every listed page.

    Returns
    -------
    requests, total : torch.Tensor
        Pages of each request, ``[B, R]``, and of all of them, a shared page once, ``[R]``, both int32.

    Notes
    -----
    The working set of Denning (CACM 1968), with decode steps as time and pages that attention selected as references.
    A shared page is in the working set of every request that lists it, whichever of them selected it.
    """
    listed = torch.arange(pages.shape[1], device=pages.device) < num_pages[:, None]
    recent = stamped >= oldest
    found = recent[:, pages.long().where(listed, 0)] & listed
    running = last_active == step
    running[0] = False
    return found.sum(2, dtype=torch.int32).T.contiguous(), (recent & running).sum(1, dtype=torch.int32)
