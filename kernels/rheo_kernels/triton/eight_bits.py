"""quantise and widen: between K and V as they are computed with and as blocks of 8 bits hold them."""

from __future__ import annotations

import triton
import triton.language as tl

from rheo_kernels.types.kv_scales import LARGEST

_LARGEST = tl.constexpr(LARGEST)
MANTISSA = tl.constexpr(3)
LEAST_EXPONENT = tl.constexpr(-6)
"""Of numbers that are not subnormal."""


@triton.jit
def quantise(values, factor):
    """What 8 bits hold of ``values * factor``, float32; see `rheo_kernels.reference.quantise`.

    Adding and taking away 1.5 times the number whose last bit is worth what the result's is rounds to nearest, ties to
    even. What is left for the store to convert is exact.
    """
    wide = values.to(tl.float32) * factor
    wide = tl.minimum(tl.maximum(wide, -_LARGEST), _LARGEST)
    exponent = (wide.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.maximum(exponent, LEAST_EXPONENT + 127) + (23 - MANTISSA)
    magic = ((exponent << 23) | 0x400000).to(tl.float32, bitcast=True)
    return (wide + magic) - magic


@triton.jit
def widen(stored):
    """The numbers that 8 bits stand for, float32; other dtypes as they are."""
    if stored.dtype.primitive_bitwidth == 8:
        stored = stored.to(tl.float32)
    return stored
