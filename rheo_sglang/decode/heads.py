"""HeadShape: the attention heads of one rank."""

from __future__ import annotations

from typing import NamedTuple


class HeadShape(NamedTuple):
    """KV heads ``H``, query heads per KV head ``G``, and their dimension ``D``."""

    kv_heads: int
    group: int
    dim: int
