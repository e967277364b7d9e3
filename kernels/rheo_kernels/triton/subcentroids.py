"""subcentroids: a page's sub-centroid summary, made from its block and decoded."""

from __future__ import annotations

import triton
import triton.language as tl

from rheo_kernels.types import subcentroids as types

CENTRE_LEVEL = tl.constexpr(types.CENTRE_LEVEL)
LEAST_SCALE = tl.constexpr(types.LEAST_SCALE)
LARGEST_SCALE = tl.constexpr(types.LARGEST_SCALE)
LARGEST_CENTRE_SCALE = tl.constexpr(types.LARGEST_CENTRE_SCALE)


@triton.jit
def store_subcentroids(
    target,
    key_low,
    key_high,
    value_low,
    value_high,
    count,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CENTRE: tl.constexpr,
    SCALES: tl.constexpr,
    VALUE: tl.constexpr,
    CENTRE_BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    CENTRE_GROUPS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Store the summary of one page of ``count`` tokens at ``target``.

    Keys and values are ``[BLOCK_H, PAGE_SIZE]``, float32, 0 from ``count`` on: the lower half of the dimensions and
    the upper one.
    """
    h = tl.arange(0, BLOCK_H)
    r = tl.arange(0, ROWS)
    inside = h < HALF
    per_row: tl.constexpr = PAGE_SIZE // ROWS
    tokens = tl.minimum(tl.maximum(count - r * per_row, 0), per_row)
    filled = (tokens > 0)[None, :]
    divisor = tl.maximum(tokens, 1).to(tl.float32)[None, :]
    rows = tl.sum(filled.to(tl.float32), 1)
    mean_low = tl.sum(tl.reshape(key_low, [BLOCK_H, ROWS, per_row]), 2) / divisor
    mean_high = tl.sum(tl.reshape(key_high, [BLOCK_H, ROWS, per_row]), 2) / divisor
    centre_low = tl.sum(mean_low, 1) / rows
    centre_high = tl.sum(mean_high, 1) / rows

    largest = tl.maximum(tl.abs(centre_low), tl.abs(centre_high))
    scales = target + SCALES + GROUPS
    if CENTRE_BITS == 8:
        largest /= CENTRE_LEVEL
        unit = _store_scales(scales, largest, LARGEST_CENTRE_SCALE, h, HALF // CENTRE_GROUPS, CENTRE_GROUPS)
        code_low = tl.minimum(tl.maximum(tl.floor(centre_low / unit + 0.5), -CENTRE_LEVEL), CENTRE_LEVEL)
        code_high = tl.minimum(tl.maximum(tl.floor(centre_high / unit + 0.5), -CENTRE_LEVEL), CENTRE_LEVEL)
        low_at = target + CENTRE + packed_byte(0, h, 2, HALF, COLUMNS)
        high_at = target + CENTRE + packed_byte(1, h, 2, HALF, COLUMNS)
        tl.store(low_at, code_low.to(tl.int8).to(tl.uint8, bitcast=True), mask=inside)
        tl.store(high_at, code_high.to(tl.int8).to(tl.uint8, bitcast=True), mask=inside)
    else:
        largest /= LEVELS / 2
        unit = _store_scales(scales, largest, LARGEST_SCALE, h, HALF // CENTRE_GROUPS, CENTRE_GROUPS)
        code_low = _code(centre_low / unit, LEVELS)
        code_high = _code(centre_high / unit, LEVELS)
        at = target + CENTRE + packed_byte(0, h, 1, HALF, COLUMNS)
        tl.store(at, _pack(code_low, code_high), mask=inside)
        code_low -= LEVELS / 2
        code_high -= LEVELS / 2
    low = tl.where(filled, mean_low - (code_low * unit)[:, None], 0.0)
    high = tl.where(filled, mean_high - (code_high * unit)[:, None], 0.0)

    largest = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), 1) / (LEVELS / 2)
    step = _store_scales(target + SCALES, largest, LARGEST_SCALE, h, HALF // GROUPS, GROUPS)[:, None]
    packed = _pack(_code(low / step, LEVELS), _code(high / step, LEVELS))
    at = packed_byte(r[None, :], h[:, None], BLOCK_ROWS, HALF, COLUMNS)
    tl.store(target + at, packed, mask=inside[:, None])

    low = tl.sum(value_low, 1) / count
    high = tl.sum(value_high, 1) / count
    largest = tl.maximum(tl.abs(low), tl.abs(high)) / (LEVELS / 2)
    scales = target + SCALES + GROUPS + CENTRE_GROUPS
    unit = _store_scales(scales, largest, LARGEST_SCALE, h, HALF, 1)
    tl.store(target + VALUE + h, _pack(_code(low / unit, LEVELS), _code(high / unit, LEVELS)), mask=inside)
    tl.store(scales + 1, tl.zeros([], tl.uint8))


@triton.jit
def _store_scales(target, wanted_at, most, h, SIZE: tl.constexpr, COUNT: tl.constexpr):
    """Store the scale of every group of ``SIZE`` places, up to ``most``; those of all places, float32."""
    scales = tl.full(h.shape, 1.0, tl.float32)
    for group in tl.static_range(COUNT):
        mine = h // SIZE == group
        wanted = tl.max(tl.where(mine, wanted_at, 0.0), 0)
        wanted = tl.minimum(tl.maximum(wanted, LEAST_SCALE), most)
        code = (((wanted.to(tl.int32, bitcast=True) + 0xFFFFF) >> 20) - 896).to(tl.uint8)
        tl.store(target + group, code)
        scales = tl.where(mine, decode_scale(code), scales)
    return scales


@triton.jit
def _code(values, LEVELS: tl.constexpr):
    """4-bit codes, float32, of values in scales."""
    return tl.minimum(tl.maximum(tl.floor(values + (LEVELS / 2 + 0.5)), 0.0), LEVELS)


@triton.jit
def _pack(low, high):
    return (low.to(tl.int32) | (high.to(tl.int32) << 4)).to(tl.uint8)


@triton.jit
def packed_byte(row, h, BLOCK_ROWS: tl.constexpr, HALF: tl.constexpr, COLUMNS: tl.constexpr):
    """Where byte ``h`` of a packed row lies, see `SubcentroidLayout`."""
    run: tl.constexpr = HALF // (4 * COLUMNS)
    word = h // 4
    place = (word % run * BLOCK_ROWS + row % BLOCK_ROWS) * COLUMNS + word // run
    return row // BLOCK_ROWS * (BLOCK_ROWS * HALF) + 4 * place + h % 4


@triton.jit
def decode_scale(code):
    """The float32 that an 8-bit scale, the upper half of a positive float16, stands for."""
    return (code.to(tl.int16) << 7).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def code_bits(packed, HIGH: tl.constexpr):
    """The 4-bit codes in the low or the high half of bytes, 0 to 15, float32."""
    if HIGH:
        return (packed >> 4).to(tl.float32)
    return (packed & 15).to(tl.float32)
