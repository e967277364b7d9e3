"""SubcentroidLayout: where the bytes of a page's sub-centroid summary lie."""

from __future__ import annotations

import math
from typing import NamedTuple

GROUPS = 8
"""Groups of dimensions with a scale of their own for the row codes; ``d`` and ``d + D / 2`` share a group."""
CENTRE_GROUPS = 2
"""The same for the centre."""
LEVELS = 15
"""Steps between the lowest and the highest 4-bit code; code ``c`` stands for ``c - LEVELS / 2`` scales."""
CENTRE_LEVEL = 127
"""Highest magnitude of an 8-bit code of the centre."""
LEAST_SCALE = 2.0**-14
"""Smallest scale: that of float16 without subnormal numbers."""
LARGEST_SCALE = 7680.0
"""Largest scale of a 4-bit code, the last one below 8192: what a code stands for fits float16."""
LARGEST_CENTRE_SCALE = 512.0
"""The same of an 8-bit code."""
TILE_ROWS = 8
"""Rows that tensor cores multiply at once: as many are interleaved."""
COLUMNS = 4
"""Lanes that share a row in such a product, each with a run of its dimensions of its own."""


class SubcentroidLayout(NamedTuple):
    """Bytes of one page's summary in one layer and KV head, ``uint8 [W]``.

    A page's tokens are taken in *rows* of ``row_tokens``. A row is the mean key of its tokens, stored as a 4-bit
    difference to the page's *centre*; the page's mean V is stored next to the rows, in 4 bits. In order:

    ========= ============== ================================================================
    part      bytes          content
    ========= ============== ================================================================
    rows      ``R * D / 2``  packed codes, interleaved
    centre    ``D`` or       signed bytes, interleaved (`centre_bits` 8), or packed as one
              ``D / 2``      row (4)
    scales    12             `GROUPS` of the rows, `CENTRE_GROUPS` of the centre, one of V, one unused
    values    ``D / 2``      mean V: byte ``d < D / 2`` has dimension ``d`` in its low half and
                             ``d + D / 2`` in its high half
    ========= ============== ================================================================

    A row's codes are packed as those of V, and its ``D / 8`` words of 4 bytes are dealt to `columns` runs of
    consecutive words. Blocks of ``interleaved_rows`` rows follow each other; in a block, the first words of all runs
    come first, row by row, then the second words: word ``i`` of run ``c`` of the block's row ``r`` is its word
    ``(i * interleaved_rows + r) * columns + c``. So the lanes of a warp that need a row each and a run of it, as the
    operands of tensor cores are laid out, read consecutive words, and each of them needs the scales of its own run
    alone. An 8-bit centre is interleaved likewise, its two halves of the dimensions as two rows.

    A scale is the upper half of a positive float16 (5 bits of exponent, 3 of mantissa). What a code stands for, code
    times scale, is exact in float16, for rows, centre and values. Scores read all but the last part, the tail only the
    last two.
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
    def interleaved_rows(self) -> int:
        """Rows of a block."""
        return math.gcd(self.rows, TILE_ROWS)

    @property
    def columns(self) -> int:
        """Runs of a row: `COLUMNS` where its words are a multiple of them."""
        return math.gcd(self.head_dim // 8, COLUMNS)

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
