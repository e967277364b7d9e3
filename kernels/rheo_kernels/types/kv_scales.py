"""KVScales: what the numbers in a layer's blocks stand for, where they are stored in 8 bits."""

from __future__ import annotations

from typing import NamedTuple

import torch

EIGHT_BITS = torch.float8_e4m3fn
"""Four bits of exponent, three of mantissa, no infinity."""
LARGEST = 448.0
"""Its largest number; larger ones are stored as this one."""


class KVScales(NamedTuple):
    """K and V of a layer are what blocks hold times these.

    Kernels compute with the numbers that blocks hold. Attention is linear in V, and its logits are in K: ``k`` goes
    into the softmax scale and ``v`` into the output. Summaries are of the numbers in blocks, too.
    """

    k: float = 1.0
    v: float = 1.0

    @property
    def factors(self) -> tuple[float, float]:
        """What K and V are multiplied by before they are rounded to 8 bits."""
        return 1 / self.k, 1 / self.v


UNSCALED = KVScales()
"""Blocks hold K and V themselves."""
