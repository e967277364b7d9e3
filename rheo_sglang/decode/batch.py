"""DecodeBatch: what every layer of one decode step shares."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_sglang.budget import BudgetTable


class DecodeBatch(NamedTuple):
    """One decode step's requests in terms of pages.

    Attributes
    ----------
    rows
        The recorder's row of each request, ``[B]``, int64; None without a recorder.
    seq_lens
        Tokens of each request, the new one included, ``[B]``, int64.
    pages
        Page lists, ``[B, M]``, int32; entries past ``num_pages`` are undefined.
    num_pages
        ``[B]``, int32.
    tail_pages, tail_offsets
        Page that receives the new token, and where in it, ``[B]``, int32; page 0 marks a padded row.
    filled
        Tail pages that the new token completes, ``[X]``, int64.
    budget
        Pages each request and KV head may select, ``[B, H]``, int32.
    width
        ``S``, columns of the selection.
    """

    rows: torch.Tensor | None
    seq_lens: torch.Tensor
    pages: torch.Tensor
    num_pages: torch.Tensor
    tail_pages: torch.Tensor
    tail_offsets: torch.Tensor
    filled: torch.Tensor
    budget: torch.Tensor
    width: int


def page_lists(
    req_to_token: torch.Tensor, slots: torch.Tensor, max_seq_len: int, page_size: int
) -> torch.Tensor:
    """Page lists of requests: ``[B, M]``, int32, from SGLang's token table ``[R, context]`` of slots."""
    columns = -(-max_seq_len // page_size) * page_size
    return (req_to_token[slots, :columns:page_size] // page_size).to(torch.int32)


def build_decode_batch(
    req_to_token: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seq_len: int,
    page_size: int,
    budget: BudgetTable,
    kv_heads: int,
    rows: torch.Tensor | None = None,
) -> DecodeBatch:
    """Describe one decode step.

    Parameters
    ----------
    req_to_token
        SGLang's token table, ``[R, context]``.
    slots, seq_lens
        Requests' rows in it and their lengths with the new token, ``[B]``.
    max_seq_len
        Longest of ``seq_lens``, known on the host.
    page_size
        Tokens per page.
    budget
        Pages that requests may select.
    kv_heads
        ``H``.
    rows
        The recorder's row of each request, if there is one.
    """
    seq_lens = seq_lens.long()
    pages = page_lists(req_to_token, slots, max_seq_len, page_size)
    num_pages = ((seq_lens + page_size - 1) // page_size).to(torch.int32)
    tail_pages = pages.gather(1, (num_pages - 1).long()[:, None]).squeeze(1)
    tail_offsets = ((seq_lens - 1) % page_size).to(torch.int32)
    return DecodeBatch(
        rows=rows,
        seq_lens=seq_lens,
        pages=pages,
        num_pages=num_pages,
        tail_pages=tail_pages,
        tail_offsets=tail_offsets,
        filled=tail_pages[(tail_offsets == page_size - 1) & (tail_pages > 0)].long(),
        budget=budget.caps[num_pages.long()][:, None].expand(-1, kv_heads),
        width=budget.width(-(-max_seq_len // page_size)),
    )
