"""launch: block sizes and warps of kernels that keep a whole row in registers."""

from __future__ import annotations

ENTRIES_PER_THREAD = 16
MAX_PAGES = 2**15


def row_block(columns: int) -> int:
    """Block of one program over a page list of ``columns``: the next power of two.

    Raises
    ------
    ValueError
        Beyond `MAX_PAGES`, which is what the kernels' 16-bit counts hold.
    """
    if columns > MAX_PAGES:
        raise ValueError(f"page lists of {columns} columns are too wide; allowed: up to {MAX_PAGES}")
    return 1 << max(columns - 1, 0).bit_length()


def row_warps(entries: int) -> int:
    """Warps for one program over ``entries`` (a power of two): `ENTRIES_PER_THREAD` a thread, at most 32."""
    return min(max(entries // (32 * ENTRIES_PER_THREAD), 1), 32)
