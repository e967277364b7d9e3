"""subcentroids: a page as the mean keys of its rows in 4 bits, with its mean V."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from rheo_kernels.types.subcentroids import (
    CENTRE_GROUPS,
    CENTRE_LEVEL,
    GROUPS,
    LARGEST_CENTRE_SCALE,
    LARGEST_SCALE,
    LEAST_SCALE,
    LEVELS,
    SubcentroidLayout,
)


class PageEstimate(NamedTuple):
    """What a page's summary stands for, decoded."""

    rows: torch.Tensor
    """Mean key of every row, ``[..., R, D]``, float32."""
    steps: torch.Tensor
    """Quantisation step of every dimension, ``[..., D]``, float32."""
    value: torch.Tensor
    """Mean V, ``[..., D]``, float32."""


def summarise_subcentroids(
    keys: torch.Tensor, values: torch.Tensor, counts: torch.Tensor, layout: SubcentroidLayout
) -> torch.Tensor:
    """Summarise pages.

    The centre is the mean of the rows. It is rounded first, and the rows' differences are taken to what was stored, so
    that its rounding does not add to theirs. Differences within a page are small even where a model's keys have
    dimensions with large constant parts, which neither a scale per row nor a rotation spreads well enough: estimates
    of what draws no attention came out too high by a factor of up to e^39 on Qwen2.5-Coder 0.5B. Dimensions that are
    rotated together by a rotary embedding share a scale. Values beyond float16's range are clipped.

    Parameters
    ----------
    keys, values
        ``[..., P, D]``, floating; what lies at a page's end beyond its count is ignored.
    counts
        Tokens that each page holds, ``[...]``, integer.
    layout
        Where the bytes lie.

    Returns
    -------
    torch.Tensor
        ``[..., W]``, uint8. Depends on the tokens in the page alone. A row without tokens equals the centre.
    """
    place = torch.arange(layout.page_size, device=keys.device)
    live = place < counts[..., None]
    keys = keys.float().masked_fill(~live[..., None], 0.0)
    values = values.float().masked_fill(~live[..., None], 0.0)
    present = row_counts(counts, layout)
    sums = keys.unflatten(-2, (layout.rows, layout.row_tokens)).sum(-2)
    means = sums / present.clamp(min=1)[..., None]
    filled = present > 0
    centre = means.sum(-2) / filled.sum(-1).clamp(min=1)[..., None]
    value = values.sum(-2) / counts.clamp(min=1)[..., None]

    wide = layout.centre_bits == 8
    paired = _grouped(centre, CENTRE_GROUPS).abs().amax((-3, -1))
    centre_scale = _scale(paired, CENTRE_LEVEL, LARGEST_CENTRE_SCALE) if wide else _scale(paired)
    unit = _spread(decode_scale(centre_scale), layout.head_dim)
    if wide:
        centre_code = (centre / unit + 0.5).floor().clamp(-CENTRE_LEVEL, CENTRE_LEVEL)
        packed_centre = _interleave(
            centre_code.to(torch.int8).view(torch.uint8).unflatten(-1, (2, -1)), layout
        )
    else:
        centre_code = _code(centre, unit)
        packed_centre = _interleave(_pack(centre_code)[..., None, :], layout)
        centre_code = centre_code - LEVELS / 2
    stored = centre_code * unit

    differences = torch.where(filled[..., None], means - stored[..., None, :], 0.0)
    row_scale = _scale(_grouped(differences, GROUPS).abs().amax((-4, -3, -1)))
    codes = _code(differences, _spread(decode_scale(row_scale), layout.head_dim)[..., None, :])
    value_scale = _scale(value.abs().amax(-1, keepdim=True))
    value_code = _code(value, decode_scale(value_scale))
    unused = torch.zeros_like(value_scale)
    parts = (
        _interleave(_pack(codes), layout),
        packed_centre,
        row_scale,
        centre_scale,
        value_scale,
        unused,
        _pack(value_code),
    )
    return torch.cat(parts, -1)


def decode_subcentroids(summaries: torch.Tensor, layout: SubcentroidLayout) -> PageEstimate:
    """Decode summaries ``[..., W]``, uint8."""
    rows, centre, scales, value = summaries.tensor_split(
        (layout.centre_offset, layout.scales_offset, layout.value_offset), -1
    )
    row_scale, centre_scale, value_scale, _ = decode_scale(scales).tensor_split(
        (GROUPS, GROUPS + CENTRE_GROUPS, GROUPS + CENTRE_GROUPS + 1), -1
    )
    steps = _spread(row_scale, layout.head_dim)
    if layout.centre_bits == 8:
        code = _deinterleave(centre, 2, layout).flatten(-2).view(torch.int8).float()
    else:
        code = _unpack(_deinterleave(centre, 1, layout).squeeze(-2))
    middle = code * _spread(centre_scale, layout.head_dim)
    offsets = _unpack(_deinterleave(rows, layout.rows, layout)) * steps[..., None, :]
    return PageEstimate(middle[..., None, :] + offsets, steps, _unpack(value) * value_scale)


def decode_values(summaries: torch.Tensor, layout: SubcentroidLayout) -> torch.Tensor:
    """Mean V, ``[..., D]``, float32, of summaries ``[..., W]``, uint8, or of their last two parts."""
    codes = layout.width - layout.value_offset
    return _unpack(summaries[..., -codes:]) * decode_scale(summaries[..., -codes - 2, None])


def row_counts(counts: torch.Tensor, layout: SubcentroidLayout) -> torch.Tensor:
    """Tokens of every row ``[..., R]`` of pages that hold ``counts`` ``[...]``."""
    first = torch.arange(layout.rows, device=counts.device) * layout.row_tokens
    return (counts[..., None] - first).clamp(0, layout.row_tokens)


def decode_scale(code: torch.Tensor) -> torch.Tensor:
    """The float32 that an 8-bit scale stands for."""
    return (code.to(torch.int16) << 7).view(torch.float16).float()


def _scale(largest: torch.Tensor, level: float = LEVELS / 2, most: float = LARGEST_SCALE) -> torch.Tensor:
    """The smallest 8-bit scale of which ``level`` reach ``largest``; at most ``most``."""
    bits = (largest / level).clamp(LEAST_SCALE, most).view(torch.int32)
    # float32 to 8 bits: 20 bits of mantissa fewer, rounded up; its exponent is biased by 127, not 15
    return (((bits + 0xFFFFF) >> 20) - ((127 - 15) << 3)).to(torch.uint8)


def _code(values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    return (values / unit + (LEVELS / 2 + 0.5)).floor().clamp(0, LEVELS)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    low, high = codes.to(torch.uint8).chunk(2, -1)
    return low | (high << 4)


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    return torch.cat([packed & 15, packed >> 4], -1).float() - LEVELS / 2


def _interleave(rows: torch.Tensor, layout: SubcentroidLayout) -> torch.Tensor:
    """Bytes ``[..., R, D / 2]`` in their order in memory, ``[...]``."""
    block = math.gcd(rows.shape[-2], layout.interleaved_rows)
    words = rows.unflatten(-1, (layout.columns, -1, 4)).unflatten(-4, (-1, block))
    return words.transpose(-3, -2).transpose(-4, -3).flatten(-5)


def _deinterleave(stored: torch.Tensor, rows: int, layout: SubcentroidLayout) -> torch.Tensor:
    """The inverse of `_interleave`: ``[..., R, D / 2]``."""
    block = math.gcd(rows, layout.interleaved_rows)
    words = stored.unflatten(-1, (rows // block, -1, block, layout.columns, 4))
    return words.transpose(-4, -3).transpose(-3, -2).flatten(-3).flatten(-3, -2)


def _grouped(values: torch.Tensor, groups: int) -> torch.Tensor:
    """``[..., D]`` as ``[..., 2, groups, D / 2 / groups]``."""
    return values.unflatten(-1, (2, groups, -1))


def _spread(scales: torch.Tensor, dim: int) -> torch.Tensor:
    """The scale of every dimension ``[..., D]`` from those of groups ``[..., groups]``."""
    return scales.repeat_interleave(dim // 2 // scales.shape[-1], -1).repeat(*[1] * (scales.dim() - 1), 2)
