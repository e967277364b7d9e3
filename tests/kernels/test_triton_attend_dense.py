"""attend_dense equals dense attention over whole requests, from frames and host pages alike."""

from __future__ import annotations

import pytest
import torch
from test_triton_attend import TOLERANCE, exact_attend
from triton_cases import (
    EIGHT_BIT_SHAPES,
    GPU_SHAPES,
    SHAPES,
    Shape,
    merged,
    normal,
    page_lists,
    permutation,
    relative_error,
)

from rheo_kernels import reference


def check(shape: Shape, lengths: list[int], resident: float, rng: torch.Generator) -> None:
    """Requests of the given tokens; the rest of every page, and host pages of resident ones, hold NaN."""
    from rheo_kernels import triton as kernels

    size, heads, device = shape.page_size, shape.heads, rng.device
    counts = [-(-length // size) for length in lengths]
    total = sum(counts) + 3
    content = normal((total, heads, 2, shape.block), shape.kv, rng)
    host = content.clone()
    frames = torch.full((heads, total, 2, shape.block), torch.nan, dtype=shape.kv, device=device)
    table = torch.full((heads, total), -1, dtype=torch.int32, device=device)
    for head in range(heads):
        pages = permutation(total - 1, rng)[: int(resident * (total - 1))] + 1
        taken = permutation(total, rng)[: pages.numel()]
        table[head, pages] = taken.to(torch.int32)
        frames[head, taken] = content[pages, head]
        host[pages, head] = torch.nan
    pages = page_lists(counts, max(counts) + 2, total, rng)
    q = normal((len(lengths), heads * shape.group, shape.dim), shape.dtype, rng)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    missed_at = torch.zeros((), dtype=torch.int32, device=device)
    step = torch.tensor(9, dtype=torch.int32, device=device)
    pinned = host.cpu().pin_memory() if device.type == "cuda" else host
    scale = shape.dim**-0.5
    parts = kernels.attend_dense(
        q, frames, pinned, pages, seq_lens, table, scale, size, missed_at=missed_at, step=step
    )
    out, lse = merged(parts, len(lengths))
    column = torch.arange(pages.shape[1], device=device)
    index = pages.masked_fill(column >= torch.tensor(counts, device=device)[:, None], -1)
    valid = (seq_lens[:, None] - column * size).clamp(0, size).to(torch.int32)
    shaped = (tensor[:, None].expand(-1, heads, -1) for tensor in (index, valid))
    exact = exact_attend(q, content.transpose(0, 1), *shaped, scale, size)
    filled = exact[1] > -torch.inf
    assert torch.equal(lse > -torch.inf, filled)
    assert out[~filled].eq(0).all()
    assert relative_error(out, exact[0]) < TOLERANCE[shape.dtype]
    defined = reference.attend_dense(q, frames, host, pages, seq_lens, table, scale, size)
    assert relative_error(out, defined[0]) < TOLERANCE[shape.dtype]
    assert torch.equal(defined[1] > -torch.inf, filled)
    assert (defined[1][filled] - exact[1][filled]).abs().max() < 1e-4
    whole = all(bool((table[:, row[row >= 0].long()] >= 0).all()) for row in index)
    assert int(missed_at) == (0 if whole else 9)


@pytest.mark.parametrize("resident", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("shape", [*SHAPES, *EIGHT_BIT_SHAPES], ids=str)
def test_attend_dense_equals_dense_attention(shape: Shape, resident: float, rng: torch.Generator) -> None:
    size = shape.page_size
    check(shape, [5 * size - 3, 1, 2 * size], resident, rng)


def test_a_padded_row_is_empty(rng: torch.Generator) -> None:
    check(Shape(), [40, 0, 17], 0.5, rng)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES[::5], ids=str)
def test_attend_dense_equals_dense_attention_on_long_requests(shape: Shape, rng: torch.Generator) -> None:
    check(shape, [4000, 17, 1024, 0, 2049], 0.8, rng)
