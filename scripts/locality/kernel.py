"""kernel: the synthetic page scores of `locality.process` on the device, in place of a benchmark's own."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from locality.process import COMPONENT_STRIDE, NODE_STRIDE, PHASE_BITS, Locality

PAGES_PER_PROGRAM = 64
WARPS = 1

_NODE_STRIDE: tl.constexpr = tl.constexpr(NODE_STRIDE)
_COMPONENT_STRIDE: tl.constexpr = tl.constexpr(COMPONENT_STRIDE)
_PHASE_BITS: tl.constexpr = tl.constexpr(PHASE_BITS)
_PHASE_MASK: tl.constexpr = tl.constexpr((1 << PHASE_BITS) - 1)
_SINE: tl.constexpr = tl.constexpr(
    tuple((-1) ** n * (0.5 * math.pi) ** (2 * n + 1) / math.factorial(2 * n + 1) for n in range(6))
)


def locality_scores(
    scores: torch.Tensor,
    num_pages: torch.Tensor,
    step: torch.Tensor,
    layer: int,
    seeds: torch.Tensor,
    locality: Locality,
) -> None:
    """Overwrite the scores of every request's pages with `locality.process.synthetic_scores`.

    The grid depends on the shape of `scores` alone and nothing is read back: a CUDA graph can capture the call,
    and a replay continues the process where `step` was advanced on the device.

    Parameters
    ----------
    scores
        ``[B, H, M]``, float32, contiguous in `M`; columns from ``num_pages`` on stay as they are.
    num_pages
        Pages of each request, ``[B]``, int32.
    step
        Decode step, 0 or more, one int32 element on the device.
    layer
        Layer, 0 or more.
    seeds
        Seed of each request, ``[B]``, int32 or int64; the low 32 bits count.
    locality
        Parameters; another set of them compiles another kernel.
    """
    batch, heads, width = scores.shape
    _locality_scores[(triton.cdiv(width, PAGES_PER_PROGRAM), heads, batch)](
        scores,
        num_pages,
        step,
        seeds,
        layer,
        scores.stride(0),
        scores.stride(1),
        STATIC=locality.static,
        WEIGHTS=locality.weights,
        PERIODS=locality.periods,
        SPREAD=locality.spread,
        COMPONENTS=len(locality.periods),
        BLOCK_M=PAGES_PER_PROGRAM,
        num_warps=WARPS,
    )


@triton.jit(do_not_specialize=["layer"])
def _locality_scores(
    scores,
    num_pages,
    step,
    seeds,
    layer,
    stride_sb,
    stride_sh,
    STATIC: tl.constexpr,  # noqa: N803
    WEIGHTS: tl.constexpr,  # noqa: N803
    PERIODS: tl.constexpr,  # noqa: N803
    SPREAD: tl.constexpr,  # noqa: N803
    COMPONENTS: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
):
    start = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1)
    request = tl.program_id(2)
    count = tl.load(num_pages + request)
    if start < count:
        page = start + tl.arange(0, BLOCK_M)
        head_key = _mix(_mix(layer.to(tl.uint32) + _NODE_STRIDE) ^ head.to(tl.uint32))
        request_key = _mix(tl.load(seeds + request).to(tl.uint32) + _NODE_STRIDE)
        key = _mix(_mix(head_key ^ request_key) + page.to(tl.uint32))
        now = tl.load(step).to(tl.uint32)
        moving = tl.full([BLOCK_M], 0.0, tl.float32)
        for index in tl.static_range(COMPONENTS):
            time = now + ((key >> (_PHASE_BITS * index)) & _PHASE_MASK) % PERIODS[index]
            node = (time // PERIODS[index]) * _NODE_STRIDE + key + (index + 1) * _COMPONENT_STRIDE
            if PERIODS[index] == 1:
                part = _normal(node)
            else:
                turn = (time % PERIODS[index]).to(tl.float32) / PERIODS[index]
                part = _normal(node) * _quarter_sine(1.0 - turn)
                part += _normal(node + _NODE_STRIDE) * _quarter_sine(turn)
            moving += WEIGHTS[index] * part
        score = STATIC * _normal(key) + tl.exp(SPREAD * _normal(head_key)) * moving
        row = scores + request.to(tl.int64) * stride_sb + head.to(tl.int64) * stride_sh
        tl.store(row + page, score, mask=page < count)


@triton.jit
def _normal(value):
    bits = _mix(value)
    radius = tl.sqrt(-2.0 * tl.log(((bits >> 16).to(tl.float32) + 0.5) / 65536.0))
    turn = (bits & 0xFFFF).to(tl.float32) / 65536.0
    return radius * _quarter_sine(4.0 * tl.abs(turn - 0.5) - 1.0)


@triton.jit
def _quarter_sine(x):
    """sin(pi / 2 * x) for x from -1 to 1 by six terms of its series, to 1e-7."""
    square = x * x
    value = tl.full(x.shape, _SINE[5], tl.float32)
    for term in tl.static_range(4, -1, -1):
        value = value * square + _SINE[term]
    return value * x


@triton.jit
def _mix(value):
    value = (value ^ (value >> 16)) * 0x85EBCA6B
    value = (value ^ (value >> 13)) * 0xC2B2AE35
    return value ^ (value >> 16)
