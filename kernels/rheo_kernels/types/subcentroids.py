"""SubcentroidLayout: where the bytes of a page's sub-centroid summary lie."""

from __future__ import annotations

from typing import NamedTuple

GROUPS = 8
"""Groups of dimensions with a scale of their own for the row codes; ``d`` and ``d + D / 2`` share a group."""
CENTRE_GROUPS = 2
"""The same for the centre."""
LEVELS = 15
"""Steps between the lowest and the highest 4-bit code; code ``c`` stands for ``c - LEVELS / 2`` scales."""


class SubcentroidLayout(NamedTuple):
    """Bytes of one page's summary in one layer and KV head, ``uint8 [W]``.

    A page's tokens are taken in *rows* of ``row_tokens``. A row is the mean key of its tokens, stored as a 4-bit
    difference to the page's *centre*; the page's mean V is stored next to the rows, in 4 bits. In order:

    ========= ============== ================================================================
    part      bytes          content
    ========= ============== ================================================================
    rows      ``R * D / 2``  row ``r``, dimension ``d < D / 2`` in the low half of byte
                             ``r * D / 2 + d``, ``d + D / 2`` in the high half
    centre    ``D`` or       signed bytes in the order of dimensions (`centre_bits` 8), or
              ``D / 2``      packed as a row is (4)
    scales    12             `GROUPS` of the rows, `CENTRE_GROUPS` of the centre, one of V, one unused
    values    ``D / 2``      mean V, packed as a row is
    ========= ============== ================================================================

    A scale is the upper half of a positive float16 (5 bits of exponent, 3 of mantissa). Scores read all but the last
    part, the tail only the last two.
    """

    head_dim: int
    page_size: int
    row_tokens: int
    centre_bits: int

    @property
    def rows(self) -> int:
        """``R``: rows of a page."""
        return self.page_size // self.row_tokens

    @property
    def centre_offset(self) -> int:
        """First byte of the centre."""
        return self.rows * self.head_dim // 2

    @property
    def scales_offset(self) -> int:
        """First byte of the scales."""
        return self.centre_offset + self.head_dim * self.centre_bits // 8

    @property
    def value_offset(self) -> int:
        """First byte of the mean V."""
        return self.scales_offset + GROUPS + CENTRE_GROUPS + 2

    @property
    def width(self) -> int:
        """``W``: bytes of a page, a multiple of 4."""
        return self.value_offset + self.head_dim // 2


def subcentroid_layout(head_dim: int, page_size: int, row_tokens: int) -> SubcentroidLayout:
    """Layout for a geometry: an 8-bit centre where it is spread over 32 tokens or more, else one of 4 bits.

    Raises
    ------
    ValueError
        Where a row does not divide the page, or a head has no groups of whole dimension pairs.
    """
    if row_tokens not in (2, 4, 8) or page_size % row_tokens or page_size < 2 * row_tokens:
        raise ValueError(
            f"rows of {row_tokens} tokens in pages of {page_size}; allowed: 2, 4 or 8, two rows a page or more"
        )
    if head_dim % (2 * GROUPS):
        raise ValueError(f"sub-centroids of head dimension {head_dim}; allowed: multiples of {2 * GROUPS}")
    return SubcentroidLayout(head_dim, page_size, row_tokens, 8 if page_size >= 32 else 4)
