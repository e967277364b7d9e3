"""merge: partial attention outputs over disjoint tokens into one, by their LSE."""

from __future__ import annotations

import torch


def merge(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine two partials.

    Parameters
    ----------
    out_a, out_b
        Outputs normalised within their part, ``[..., D]``, float32.
    lse_a, lse_b
        Natural logarithm of the sum of exponentials of each part's logits, ``[...]``, float32; ``-inf`` for
        an empty part, which is the identity.
    out, lse
        Result buffers; may be those of either input.

    Returns
    -------
    tuple of torch.Tensor
        The merged output and LSE. Two empty parts merge to ``(0, -inf)``.
    """
    top = torch.maximum(lse_a, lse_b)
    shift = top.masked_fill(top == -torch.inf, 0.0)
    weight_a, weight_b = (lse_a - shift).exp(), (lse_b - shift).exp()
    total = weight_a + weight_b
    merged_lse = total.log() + shift
    share = (weight_b / total).masked_fill(total == 0, 0.0).unsqueeze(-1)
    merged = out_a + (out_b - out_a) * share
    if out is None or lse is None:
        return merged, merged_lse
    return out.copy_(merged), lse.copy_(merged_lse)
