"""offload: the queries and the lists of missed pages that a GPU writes for the CPU to attend."""

from __future__ import annotations

import torch

from rheo_kernels.types.offload_words import count_words, page_words


def offload_misses(
    q: torch.Tensor,
    misses: torch.Tensor,
    valid: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    host_q: torch.Tensor,
    host_entries: torch.Tensor,
    host_counts: torch.Tensor,
    tag: int = 0,
) -> None:
    """Write what the CPU needs of one layer's misses; lists begin at column 0 there.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``.
    misses, valid
        Missed pages and their tokens, ``[B, H, S]``, int32.
    first, last
        Columns to offload, ``[first, last)``, ``[B, H]``, int32.
    host_q
        ``[X, Hq, D]``, ``X >= B``; written for the query heads of lists that are not empty.
    host_entries
        Words for pages, ``[X, H, Y]``, int64, ``Y >= S``; written, columns beyond a list's pages may hold anything.
    host_counts
        Words for the number of pages, ``[X, H]``, int64; written.
    tag
        Sequence number of the words.
    """
    batch, heads, _ = misses.shape
    group = q.shape[1] // heads
    counts = last - first
    host_counts[:batch] = count_words(counts, tag).to(host_counts.device)
    request, head = (counts > 0).nonzero(as_tuple=True)
    queries, target = q.unflatten(1, (heads, group)), host_q.unflatten(1, (heads, group))
    target[request.cpu(), head.cpu()] = queries[request, head].to(host_q.device)
    for b, h in zip(request.tolist(), head.tolist(), strict=True):
        columns = slice(int(first[b, h]), int(last[b, h]))
        words = page_words(misses[b, h, columns], valid[b, h, columns], tag)
        host_entries[b, h, : len(words)] = words.to(host_entries.device)
