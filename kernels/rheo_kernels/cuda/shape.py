"""Shape: of pages and queries that a variant of the attention kernel is for."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.cuda.workspace import Pipeline


class Shape(NamedTuple):
    """Of a page of one KV head, and of the queries that attend it."""

    dim: int
    page_size: int
    group: int
    """Query heads of a KV head."""
    dtype: torch.dtype
    """Of queries and outputs: bfloat16 or float16."""
    kv_dtype: torch.dtype
    """Of pages: the same or of 8 bits."""

    @property
    def block_bytes(self) -> int:
        """Of a page, K and V."""
        return 2 * self.kv_dtype.itemsize * self.dim * self.page_size

    @property
    def pipeline(self) -> Pipeline:
        """See `Pipeline.of_shape`."""
        return Pipeline.of_shape(self.dim, self.page_size, self.kv_dtype.itemsize)
