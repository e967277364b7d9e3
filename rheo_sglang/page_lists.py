"""page_lists: SGLang's token table of slots, read as lists of logical pages."""

from __future__ import annotations

import torch


def page_lists(
    req_to_token: torch.Tensor, slots: torch.Tensor, max_seq_len: int, page_size: int
) -> torch.Tensor:
    """Page lists of requests: ``[B, M]``, int32, from SGLang's token table ``[R, context]`` of slots."""
    columns = -(-max_seq_len // page_size) * page_size
    return (req_to_token[slots, :columns:page_size] // page_size).to(torch.int32)
