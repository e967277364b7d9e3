"""page_mass: how much attention a chunk's last tokens pay to each page."""

from __future__ import annotations

import torch


def page_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_keys: torch.Tensor,
    scale: float,
    page_size: int,
    last: int,
    columns: int,
) -> torch.Tensor:
    """Attention of each request's last tokens, summed over pages, averaged over the tokens and the GQA group.

    Parameters
    ----------
    q
        Queries of all chunks, one after the other, ``[T, Hq, D]``.
    k
        Keys of all requests, each from its first token to the end of its chunk, ``[Y, H, D]``.
    cu_queries, cu_keys
        Where each request's chunk and keys begin, and where the last ones end, ``[B + 1]``, int32. A request's
        last query and last key are the same token; attention is causal.
    scale
        Softmax scale.
    page_size
        Tokens per page; a request's first key begins a page.
    last
        Tokens whose attention is counted, at most; a shorter chunk counts whole.
    columns
        ``M``: pages of the longest request, or more.

    Returns
    -------
    torch.Tensor
        ``[B, H, M]``, float32; sums to 1 over a request's pages, ``-inf`` past its last page.
    """
    heads, dim = k.shape[1:]
    starts, key_starts = cu_queries.tolist(), cu_keys.tolist()
    mass = torch.full((len(starts) - 1, heads, columns), -torch.inf, device=q.device)
    for request, out in enumerate(mass):
        queries = q[starts[request] : starts[request + 1]][-last:].float()
        keys = k[key_starts[request] : key_starts[request + 1]].float()
        count, total = queries.shape[0], keys.shape[0]
        grouped = queries.view(count, heads, -1, dim)
        logits = torch.einsum("qhgd,thd->hgqt", grouped, keys) * scale
        position = torch.arange(total, device=q.device)
        future = position > position[total - count :, None]
        weights = logits.masked_fill_(future, -torch.inf).softmax(3).mean((1, 2))
        pages = -(-total // page_size)
        weights = torch.nn.functional.pad(weights, (0, pages * page_size - total))
        out[:, :pages] = weights.view(heads, pages, page_size).sum(2)
    return mass
