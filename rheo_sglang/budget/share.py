"""share_of: an exact share of page counts, rounded up."""

from __future__ import annotations

from fractions import Fraction

import torch

MOST = 2**63 - 1


def share_of(num_pages: torch.Tensor, ratio: Fraction) -> torch.Tensor:
    """``ceil(ratio * pages)`` of each entry: whole numbers throughout, so that 0.3 of 50 is 15.

    Parameters
    ----------
    num_pages
        ``[X]``, int64, at least 0.
    ratio
        At least 0.

    Returns
    -------
    torch.Tensor
        ``[X]``, int64. Ratios whose product with a count exceeds 64 bits (17 digits times a hundred pages) are
        multiplied in Python's integers.
    """
    share, whole = ratio.numerator, ratio.denominator
    most = int(num_pages.max()) if num_pages.numel() else 0
    if max(share * most, whole) <= MOST:
        return -torch.div(-num_pages * share, whole, rounding_mode="floor")
    return torch.tensor([-(-pages * share // whole) for pages in num_pages.tolist()], dtype=torch.int64)
