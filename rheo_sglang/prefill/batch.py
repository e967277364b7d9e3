"""PrefillBatch: what every layer of one prefill pass shares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.nn.functional import pad

ALIGNMENT = 4
"""Entries of int32 in 16 bytes."""


class StagedPages(NamedTuple):
    """The prefix pages of all requests, and where their tokens go in staged K and V. Every field ``[X]``, int32."""

    pages: torch.Tensor
    tokens: torch.Tensor
    rows: torch.Tensor


class PrefillBatch(NamedTuple):
    """One prefill pass's requests in terms of pages.

    Staged K and V hold all requests one after the other, each its prefix and then its chunk.

    Attributes
    ----------
    query_starts, key_starts
        Where each request's tokens begin among those of the chunks and in staged K and V, and where the last ones
        end: ``B + 1`` numbers, known on the host.
    cu_queries, cu_keys
        The same on the device, ``[B + 1]``, int32.
    pages
        Page lists of prefix and chunk, ``[B, M]``, int32; entries past ``num_pages`` are undefined.
    num_pages
        Pages of each request, ``[B]``, int32.
    ending
        How many requests, the first ones, are done with their prompts; they will decode next.
    offered
        Pages that those requests leave full, ``[X]``, int64; 0 = none.
    offered_rows
        Row of staged K and V with the first token of each of them, ``[X]``, int32.
    prefix
        Pages to be staged; None if no request has a prefix.
    chunk_rows
        Rows of staged K and V that take the chunks' tokens, ``[T]``, int64.
    """

    query_starts: list[int]
    key_starts: list[int]
    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    pages: torch.Tensor
    num_pages: torch.Tensor
    ending: int
    offered: torch.Tensor
    offered_rows: torch.Tensor
    prefix: StagedPages | None
    chunk_rows: torch.Tensor

    @property
    def staged_tokens(self) -> int:
        """Tokens of all prefixes and chunks."""
        return self.key_starts[-1]


def build_prefill_batch(
    pages: torch.Tensor,
    prefixes: Sequence[int],
    lengths: Sequence[int],
    page_size: int,
    last_goes_on: bool = False,
    room: int | None = None,
) -> PrefillBatch:
    """Describe one prefill pass, with a single copy to the device and no synchronisation.

    Parameters
    ----------
    pages
        Page lists of prefix and chunk, ``[B, M]``, int32.
    prefixes, lengths
        Tokens before each chunk and in it, known on the host.
    page_size
        Tokens per page.
    last_goes_on
        Whether the last request's prompt has more chunks to come.
    room
        Length of ``offered``: pages beyond it, the first ones, are left out, and page 0 fills it up. As many as there
        are, by default.
    """
    totals = [prefix + length for prefix, length in zip(prefixes, lengths, strict=True)]
    query_starts = list(accumulate(lengths, initial=0))
    key_starts = list(accumulate(totals, initial=0))
    complete = [total // page_size for total in totals]
    ending = len(totals) - int(last_goes_on)
    offered = [
        torch.arange(count, dtype=torch.int32) + request * pages.shape[1]
        for request, count in enumerate(complete[:ending])
    ]
    full_rows = [
        torch.arange(count, dtype=torch.int32) * page_size + row
        for row, count in zip(key_starts, complete[:ending], strict=False)
    ]
    index, tokens, rows, chunk_rows = [], [], [], []
    for request, (prefix, length, row) in enumerate(zip(prefixes, lengths, key_starts, strict=False)):
        begins = torch.arange(0, prefix, page_size, dtype=torch.int32)
        index.append(torch.arange(begins.numel(), dtype=torch.int32) + request * pages.shape[1])
        tokens.append((prefix - begins).clamp(max=page_size))
        rows.append(begins + row)
        chunk_rows.append(torch.arange(row + prefix, row + prefix + length, dtype=torch.int32))
    parts = [
        torch.tensor(numbers, dtype=torch.int32)
        for numbers in (
            query_starts,
            key_starts,
            [-(-total // page_size) for total in totals],
        )
    ]
    parts += [torch.cat(part) for part in (index, tokens, rows, chunk_rows)]
    nothing = torch.empty(0, dtype=torch.int32)
    listed_full, full_rows_of = (torch.cat([*part, nothing]) for part in (offered, full_rows))
    room = listed_full.numel() if room is None else room
    skipped = max(listed_full.numel() - room, 0)
    parts += [listed_full[skipped:], full_rows_of[skipped:]]
    on_device = _to_device(parts, pages.device)
    cu_queries, cu_keys, num_pages, listed, staged_tokens, staged_rows, chunk, full, rows_of_full = on_device
    staged = None
    if any(prefixes):
        staged = StagedPages(pages.flatten()[listed.long()], staged_tokens, staged_rows)
    return PrefillBatch(
        query_starts=query_starts,
        key_starts=key_starts,
        cu_queries=cu_queries,
        cu_keys=cu_keys,
        pages=pages,
        num_pages=num_pages,
        ending=ending,
        offered=pad(pages.flatten()[full.long()].long(), (0, room - full.numel())),
        offered_rows=pad(rows_of_full, (0, room - full.numel())),
        prefix=staged,
        chunk_rows=chunk.long(),
    )


def _to_device(parts: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copy int32 vectors in one piece; each begins at a multiple of 16 bytes, for which kernels are compiled."""
    room = [-(-part.numel() // ALIGNMENT) * ALIGNMENT for part in parts]
    packed = torch.cat([pad(part, (0, size - part.numel())) for part, size in zip(parts, room, strict=True)])
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    spans = zip(packed.split(room), parts, strict=True)
    return [span[: part.numel()] for span, part in spans]
