"""Corrections: by how much the attention that a request's pages draw was estimated too low."""

from __future__ import annotations

from typing import NamedTuple

import torch

CORRECTION_STEP = 1 / 16
"""Nats of a code."""


class Corrections(NamedTuple):
    """What is added to the logarithms of pages' shares, request by request."""

    codes: torch.Tensor
    """One layer's, in steps of `CORRECTION_STEP`, ``[R, H, M]``, int8, contiguous in ``M``: of every request's pages in
    their order."""
    rows: torch.Tensor
    """Row of each request in it, ``[B]``, int32."""
