"""dot: matrix products on tensor cores, also exact in Triton's interpreter, which lacks bfloat16."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, accumulator):
    """``a @ b + accumulator`` in float32; float32 operands are multiplied exactly, not as TF32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")
