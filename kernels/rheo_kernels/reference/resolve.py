"""resolve: selected pages against the page table, hits before misses."""

from __future__ import annotations

import torch

from rheo_kernels.types import Selected


def resolve(
    selected: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    page_table: torch.Tensor,
    page_size: int,
) -> Selected:
    """Look the selection up in one layer's page table.

    Parameters
    ----------
    selected
        Indices into each request's page list, ``[B, H, S]``, int32, in any order, -1 = none.
    pages
        Page lists, ``[B, M]``, int32.
    seq_lens
        Tokens of each request, ``[B]``.
    page_table
        One layer's page table, ``[H, N]``, int32, negative = no frame.
    page_size
        Tokens per page.

    Returns
    -------
    Selected
        Hits, then misses, each in the order of the request's page list.
    """
    batch, heads, _ = selected.shape
    columns = pages.shape[1]
    lists = pages[:, None].expand(batch, heads, -1)

    def logical(index: torch.Tensor) -> torch.Tensor:
        return lists.gather(2, index.clamp(min=0).long()).long()

    def frames(index: torch.Tensor) -> torch.Tensor:
        return page_table.expand(batch, -1, -1).gather(2, logical(index))

    hit = frames(selected) >= 0
    rank = torch.where(selected < 0, 2 * columns, torch.where(hit, selected, columns + selected))
    index = selected.gather(2, rank.argsort(dim=2))
    chosen = index >= 0
    frame = frames(index)
    resident = chosen & (frame >= 0)
    page = logical(index).to(torch.int32)
    valid = (seq_lens[:, None, None] - index.clamp(min=0).long() * page_size).clamp(0, page_size)
    return Selected(
        pages=page.masked_fill(~chosen, -1),
        hits=frame.masked_fill(~resident, -1),
        misses=page.masked_fill(~chosen | resident, -1),
        valid=valid.to(torch.int32).masked_fill(~chosen, 0),
        indices=index,
        num_hits=resident.sum(2, dtype=torch.int32),
        num_selected=chosen.sum(2, dtype=torch.int32),
    )
