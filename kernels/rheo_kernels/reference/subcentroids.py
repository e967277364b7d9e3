"""subcentroids: a page as the mean keys of its rows in 4 bits, with its mean V."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.types.subcentroids import CENTRE_GROUPS, GROUPS, LEVELS, SubcentroidLayout

MOST = 61440.0
"""Largest scale that 8 bits hold; rows whose values need a larger one are clipped."""
LEAST = 2.0**-14
"""Smallest scale: that of float16 without subnormal numbers."""


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
    rotated together by a rotary embedding share a scale.

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

    paired = _grouped(centre, CENTRE_GROUPS)
    centre_scale = _scale(paired.abs().amax((-3, -1)) / (127 if layout.centre_bits == 8 else LEVELS / 2))
    unit = _spread(decode_scale(centre_scale), layout.head_dim)
    if layout.centre_bits == 8:
        centre_code = (centre / unit + 0.5).floor().clamp(-127, 127)
        packed_centre = centre_code.to(torch.int8).view(torch.uint8)
    else:
        centre_code = _code(centre, unit)
        packed_centre = _pack(centre_code)
        centre_code = centre_code - LEVELS / 2
    stored = (centre_code * unit).bfloat16().float()

    differences = torch.where(filled[..., None], means - stored[..., None, :], 0.0)
    row_scale = _scale(_grouped(differences, GROUPS).abs().amax((-4, -3, -1)) / (LEVELS / 2))
    codes = _code(differences, _spread(decode_scale(row_scale), layout.head_dim)[..., None, :])
    value_scale = _scale(value.abs().amax(-1, keepdim=True) / (LEVELS / 2))
    value_code = _code(value, decode_scale(value_scale))
    unused = torch.zeros_like(value_scale)
    parts = (
        _pack(codes).flatten(-2),
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
    code = centre.view(torch.int8).float() if layout.centre_bits == 8 else _unpack(centre)
    middle = (code * _spread(centre_scale, layout.head_dim)).bfloat16().float()
    offsets = _unpack(rows.unflatten(-1, (layout.rows, -1))) * steps[..., None, :]
    return PageEstimate(middle[..., None, :] + offsets, steps, _unpack(value) * value_scale)


def row_counts(counts: torch.Tensor, layout: SubcentroidLayout) -> torch.Tensor:
    """Tokens of every row ``[..., R]`` of pages that hold ``counts`` ``[...]``."""
    first = torch.arange(layout.rows, device=counts.device) * layout.row_tokens
    return (counts[..., None] - first).clamp(0, layout.row_tokens)


def decode_scale(code: torch.Tensor) -> torch.Tensor:
    """The float32 that an 8-bit scale stands for."""
    return (code.to(torch.int16) << 7).view(torch.float16).float()


def _scale(wanted: torch.Tensor) -> torch.Tensor:
    """The smallest 8-bit scale of at least ``wanted``."""
    bits = wanted.clamp(LEAST, MOST).view(torch.int32)
    # float32 to 8 bits: 20 bits of mantissa fewer, rounded up; its exponent is biased by 127, not 15
    code = ((bits + 0xFFFFF) >> 20) - ((127 - 15) << 3)
    return code.clamp(8, 0xF7).to(torch.uint8)


def _code(values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    return (values / unit + (LEVELS / 2 + 0.5)).floor().clamp(0, LEVELS)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    low, high = codes.to(torch.uint8).chunk(2, -1)
    return low | (high << 4)


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    return torch.cat([packed & 15, packed >> 4], -1).float() - LEVELS / 2


def _grouped(values: torch.Tensor, groups: int) -> torch.Tensor:
    """``[..., D]`` as ``[..., 2, groups, D / 2 / groups]``."""
    return values.unflatten(-1, (2, groups, -1))


def _spread(scales: torch.Tensor, dim: int) -> torch.Tensor:
    """The scale of every dimension ``[..., D]`` from those of groups ``[..., groups]``."""
    return scales.repeat_interleave(dim // 2 // scales.shape[-1], -1).repeat(*[1] * (scales.dim() - 1), 2)
