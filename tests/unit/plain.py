"""What the kernels must compute, as loops over single tokens in float64, and blocks to run them on."""

from __future__ import annotations

import math

import torch


def attention(
    query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor], scale: float
) -> tuple[torch.Tensor, float]:
    """Attention of one query ``[D]`` over single keys and values ``[D]``: output ``[D]`` float64, and LSE."""
    out = torch.zeros(query.shape[0], dtype=torch.float64)
    logits = [scale * float(torch.dot(query.double(), key.double())) for key in keys]
    if not logits:
        return out, -math.inf
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    for weight, value in zip(weights, values, strict=True):
        out += weight * value.double()
    return out / sum(weights), top + math.log(sum(weights))


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor,
    valid: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-head page lists over unpacked pages ``[H, X, P, D]``: output ``[B, Hq, D]`` and LSE ``[B, Hq]``."""
    batch, num_queries, dim = q.shape
    group = num_queries // keys.shape[0]
    out = torch.zeros(batch, num_queries, dim, dtype=torch.float64)
    lse = torch.full((batch, num_queries), -math.inf, dtype=torch.float64)
    for request in range(batch):
        for query_head in range(num_queries):
            head = query_head // group
            listed_keys, listed_values = [], []
            for page, tokens in zip(
                index[request, head].tolist(), valid[request, head].tolist(), strict=True
            ):
                if page < 0:
                    continue
                listed_keys += list(keys[head, page, :tokens])
                listed_values += list(values[head, page, :tokens])
            part, part_lse = attention(q[request, query_head], listed_keys, listed_values, scale)
            out[request, query_head], lse[request, query_head] = part, part_lse
    return out, lse


def pack(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Blocks ``[..., 2, D * P]`` of pages whose K and V are ``[..., P, D]``, element by element."""
    *lead, page_size, dim = keys.shape
    blocks = torch.empty(*lead, 2, dim * page_size, dtype=keys.dtype)
    for token in range(page_size):
        for element in range(dim):
            blocks[..., 0, element * page_size + token] = keys[..., token, element]
            blocks[..., 1, token * dim + element] = values[..., token, element]
    return blocks


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected; 0 where both are 0."""
    difference = float((result.double() - expected.double()).norm())
    return difference / max(float(expected.double().norm()), torch.finfo(torch.float64).tiny)
