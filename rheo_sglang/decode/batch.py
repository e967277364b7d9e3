"""build_decode_batch: one decode step's requests as pages, where there are no kernels for it."""

from __future__ import annotations

import torch

from rheo_kernels.types import DecodeBatch
from rheo_sglang.budget import BudgetTable
from rheo_sglang.page_lists import page_lists


def build_decode_batch(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seq_len: int,
    page_size: int,
    budget: BudgetTable,
) -> DecodeBatch:
    """Describe one decode step; the definition of what `rheo_kernels.triton.describe` writes for requests.

    Parameters
    ----------
    req_to_token
        SGLang's token table, ``[R, context]``.
    rows, seq_lens
        Requests' rows in it and their lengths with the new token, ``[B]``.
    max_seq_len
        Longest of ``seq_lens``, known on the host.
    page_size
        Tokens per page.
    budget
        Pages that requests may select, by their settings.
    """
    seq_lens = seq_lens.to(torch.int32)
    pages = page_lists(req_to_token, rows, max_seq_len, page_size)
    num_pages = (seq_lens + page_size - 1) // page_size
    tail_pages = pages.gather(1, (num_pages - 1).long()[:, None]).squeeze(1)
    tail_offsets = (seq_lens - 1) % page_size
    budgets = budget.tensors
    setting, counts = budgets.setting_of[rows.long()].long(), num_pages.long()
    floor = budgets.floors[setting]
    if budgets.levels is not None and budgets.margins is not None:
        uncertain = budgets.margins[rows.long()] < budgets.levels[setting]
        floor = floor.masked_fill(uncertain, 1)
    return DecodeBatch(
        pages=pages,
        rows=rows.to(torch.int32),
        num_pages=num_pages,
        seq_lens=seq_lens,
        past=seq_lens - 1,
        tail_pages=tail_pages,
        tail_offsets=tail_offsets,
        filled=tail_pages.masked_fill(tail_offsets < page_size - 1, 0),
        budget=budgets.caps[setting, counts],
        limit=budgets.limits[setting, counts],
        floor=floor,
    )
