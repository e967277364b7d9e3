"""handed: how a GPU lists pages for the CPU, in words that say by themselves which hand-over they belong to.

A word is 64 bits: a value below, the hand-over's tag above. Whoever reads one that bears the tag has the value, in
whichever order words arrive, so that nobody has to wait until they all have. A page's value is its number above its
tokens less one; a list's is how many pages it has.
"""

from __future__ import annotations

import torch

TAG_SHIFT = 32
TOKEN_BITS = 6
LINE = 16
"""Words in what a GPU writes at once. A line that is written in part has to be read first, one after the other."""


def page_words(pages: torch.Tensor, tokens: torch.Tensor, tag: int = 0) -> torch.Tensor:
    """Words for pages, of which 1 to 64 tokens are to be attended.

    Parameters
    ----------
    pages, tokens
        Integers of one shape.
    tag
        The hand-over's, 32 bits.

    Returns
    -------
    torch.Tensor
        int64, same shape.
    """
    return (tag << TAG_SHIFT) + (pages.long() << TOKEN_BITS) + tokens.long() - 1


def count_words(counts: torch.Tensor, tag: int = 0) -> torch.Tensor:
    """Words for the number of pages of each list: int64, the shape of ``counts``."""
    return (tag << TAG_SHIFT) + counts.long()
