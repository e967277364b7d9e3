"""tail: attention to the pages that a selection left out, from their summaries alone, as one more partial."""

from __future__ import annotations

import torch

from rheo_kernels.reference.subcentroids import decode_values
from rheo_kernels.types.subcentroids import SubcentroidLayout


def tail(
    lse: torch.Tensor,
    indices: torch.Tensor,
    num_selected: torch.Tensor,
    summaries: torch.Tensor,
    pages: torch.Tensor,
    layout: SubcentroidLayout,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend the pages left out, each as if its tokens all had the page's mean V.

    Parameters
    ----------
    lse
        Estimates, ``[B, Hq, M]``, see `estimate`; float64 ones are weighted as such, others in float32.
    indices
        Selected entries of each page list, ``[B, H, S]``, int32.
    num_selected
        How many of the columns of ``indices`` count, ``[B, H]``, int32.
    summaries
        One layer's summaries, ``[H, N, W]``, uint8.
    pages
        Page lists, ``[B, M]``, int32.
    layout
        Of the summaries.

    Returns
    -------
    tuple of torch.Tensor
        Output ``[B, Hq, D]`` and LSE ``[B, Hq]``, float32; exactly ``(0, -inf)`` where nothing is left out.
    """
    batch, heads, columns = indices.shape
    queries, width = lse.shape[1:]
    counted = torch.arange(columns, device=lse.device) < num_selected[..., None]
    chosen = torch.zeros((batch, heads, width + 1), dtype=torch.bool, device=lse.device)
    chosen.scatter_(2, indices.long().masked_fill(~counted, width), True)
    wide = torch.promote_types(lse.dtype, torch.float32)
    left = lse.to(wide).unflatten(1, (heads, -1)).masked_fill(chosen[:, :, None, :width], -torch.inf)
    exists = (left > -torch.inf).any(2).any(1)
    read = summaries[..., layout.scales_offset :]
    values = decode_values(read[:, pages.long().masked_fill(~exists, 0)], layout).to(wide)
    total = left.logsumexp(-1)
    weights = (left - total.masked_fill(total == -torch.inf, 0.0)[..., None]).exp()
    out = torch.einsum("bhgm,hbmd->bhgd", weights, values)
    return out.reshape(batch, queries, -1).float(), total.view(batch, queries).float()
