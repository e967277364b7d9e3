"""offload_words: tagged 64-bit words in which a GPU lists pages for the CPU to attend.

The upper 32 bits of a word are a tag, the sequence number of the layer and step that it belongs to; the lower 32 are
its value. Since 64 bits are written and read as a whole, a reader that finds the expected tag has the value, like a
seqlock per word: writer and reader need no fence, and words may arrive in any order. A page's value is ``page * 64 +
tokens - 1``; a list's is its number of pages.
"""

from __future__ import annotations

import torch

TAG_SHIFT = 32
TOKEN_BITS = 6
LINE = 16
"""Words of a line, 128 bytes. A GPU writes whole lines: one that is written in part has to be read first."""


def page_words(pages: torch.Tensor, tokens: torch.Tensor, tag: int = 0) -> torch.Tensor:
    """Words for pages, of which 1 to 64 tokens are to be attended.

    Parameters
    ----------
    pages, tokens
        Integers of one shape.
    tag
        Sequence number, 32 bits.

    Returns
    -------
    torch.Tensor
        int64, same shape.
    """
    return (tag << TAG_SHIFT) + (pages.long() << TOKEN_BITS) + tokens.long() - 1


def count_words(counts: torch.Tensor, tag: int = 0) -> torch.Tensor:
    """Words for the number of pages of each list: int64, the shape of ``counts``."""
    return (tag << TAG_SHIFT) + counts.long()
