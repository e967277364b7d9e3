"""attend: decode attention over per-head lists of pages, as a partial with its LSE."""

from __future__ import annotations

import torch

from rheo_kernels.reference.blocks import block_keys, block_values


def attend(
    q: torch.Tensor,
    blocks: torch.Tensor,
    index: torch.Tensor,
    valid: torch.Tensor,
    scale: float,
    page_size: int,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend one query token per request to the listed pages of each KV head, on the device of the blocks.

    Hits read frames and misses read host pages through the same function: only ``blocks`` differs. K and V of
    a page are read once for the whole GQA group; pages reduce to ``(max, sum, weighted V)`` first, then
    requests reduce over their pages.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``.
    blocks
        Page blocks ``[H, X, 2, D * P]`` (any strides over ``H`` and ``X``): frames with ``X = F``, or host pages
        with ``X = N``.
    index
        Blocks to attend, ``[B, H, S]``, int32, -1 = none. No block is listed twice for one request and head.
    valid
        Tokens of each listed block to attend, ``[B, H, S]``, int32.
    scale
        Softmax scale.
    page_size
        Tokens per page.
    out, lse
        Result buffers, ``[B, Hq, D]`` and ``[B, Hq]``, float32.

    Returns
    -------
    tuple of torch.Tensor
        Output and natural-log LSE; ``(0, -inf)`` where nothing is listed.

    Notes
    -----
    Moves ``2 * D * P`` elements per listed page; memory bound up to group sizes of about 16.
    """
    origin = q.device
    q, index, valid = q.to(blocks.device), index.to(blocks.device), valid.to(blocks.device)
    batch, num_queries, dim = q.shape
    heads = blocks.shape[0]
    group = num_queries // heads
    rows, head, column = ((index >= 0) & (valid > 0)).nonzero(as_tuple=True)
    block = index[rows, head, column].long()
    keys = block_keys(blocks, page_size)[head, block].float()
    values = block_values(blocks, page_size)[head, block].float()
    queries = q.float().view(batch, heads, group, dim)[rows, head]

    logits = torch.bmm(queries, keys).mul_(scale)
    masked = torch.arange(page_size, device=q.device) >= valid[rows, head, column, None]
    logits.masked_fill_(masked[:, None], -torch.inf)
    page_max = logits.amax(2)
    target = rows * heads + head
    parts = batch * heads
    top = torch.full((parts, group), -torch.inf, device=q.device)
    top.scatter_reduce_(0, target[:, None].expand(-1, group), page_max, "amax")
    weights = (logits - top[target].unsqueeze(2)).exp()
    values.masked_fill_(masked[:, :, None], 0.0)
    total = torch.zeros((parts, group), device=q.device).index_add_(0, target, weights.sum(2))
    mixed = torch.zeros((parts, group, dim), device=q.device).index_add_(
        0, target, torch.bmm(weights, values)
    )

    result = (mixed / total.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(2)).view(q.shape)
    result_lse = (total.log() + top.masked_fill(total == 0, 0.0)).view(batch, num_queries)
    result, result_lse = result.to(origin), result_lse.to(origin)
    if out is None or lse is None:
        return result, result_lse
    return out.copy_(result), lse.copy_(result_lse)
