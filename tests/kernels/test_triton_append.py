"""append rounds new tokens to 8 bits as the reference does, to the bit; summaries have the other tests of it."""

from __future__ import annotations

import pytest
import torch
from triton_cases import same

from rheo_kernels import reference
from rheo_kernels.types import KVScales
from rheo_kernels.types.kv_scales import EIGHT_BITS

PAGE_SIZE, DIM = 16, 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.37, 4.0])
def test_tokens_are_rounded_as_the_reference_rounds_them(
    dtype: torch.dtype, scale: float, rng: torch.Generator
) -> None:
    """Subnormals, numbers beyond the largest, and those half way between two, which go to the even one."""
    from rheo_kernels import triton as kernels
    from rheo_sglang.selection import SUMMARIES

    numbers = torch.arange(1, 127, dtype=torch.uint8).view(EIGHT_BITS).float()
    halves = (numbers[1:] + numbers[:-1]) / 2
    spread = torch.randn(2048) * torch.logspace(-4, 3, 2048)
    signed = [sign * part * scale for sign in (1, -1) for part in (numbers, halves)]
    values = torch.cat([spread, *signed])
    tokens = -(-values.numel() // DIM)
    values = torch.nn.functional.pad(values, (0, tokens * DIM - values.numel()), value=1.0)
    k = values.view(tokens, 1, DIM).to(rng.device, dtype)
    pages = torch.arange(1, tokens + 1, dtype=torch.int32, device=rng.device)
    table = torch.arange(tokens + 1, dtype=torch.int32, device=rng.device)[None]
    offsets = pages % PAGE_SIZE
    summary = SUMMARIES["bound"]()
    results = []
    for engine in (reference, kernels):
        frames = torch.zeros(1, tokens + 1, 2, DIM * PAGE_SIZE, device=rng.device).to(EIGHT_BITS)
        summaries = torch.zeros(1, tokens + 1, 2, DIM, dtype=dtype, device=rng.device)
        scales = KVScales(scale, scale / 2)
        engine.append(k, k, pages, offsets, table, frames, summary, summaries, PAGE_SIZE, scales)
        results.append((frames, summaries))
    for expected, actual in zip(*results, strict=True):
        assert same(actual.float() + 0, expected.float() + 0)
