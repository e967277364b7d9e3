"""attend_fetch attends every missed page; what it kept, fill puts into the frames that admission gave."""

from __future__ import annotations

import pytest
import torch
from test_triton_attend import TOLERANCE, exact_attend
from triton_cases import (
    EIGHT_BIT_SHAPES,
    GPU_SHAPES,
    SHAPES,
    Shape,
    integers,
    merged,
    normal,
    permutation,
    relative_error,
)

from rheo_kernels import reference


def check(
    shape: Shape, counts: list[list[int]], width: int, total: int, room: int, rng: torch.Generator
) -> None:
    """One step: resolve, attend the misses, hand half of those that were kept free frames, fill them."""
    from rheo_kernels import triton as kernels

    heads, num_frames, page_size = shape.heads, total, shape.page_size
    host = normal((total, heads, 2, shape.block), shape.kv, rng)
    table = torch.full((heads, total), -1, dtype=torch.int32, device=rng.device)
    frames = torch.full((heads, num_frames, 2, shape.block), torch.nan, dtype=shape.kv, device=rng.device)
    for head in range(heads):
        resident = permutation(total - 1, rng)[: total // 2] + 1
        taken = permutation(num_frames, rng)[: resident.numel()]
        table[head, resident] = taken.to(torch.int32)
        frames[head, taken] = host[resident, head]
    batch = len(counts)
    selected = torch.full((batch, heads, width), -1, dtype=torch.int32, device=rng.device)
    for b, row in enumerate(counts):
        for h, count in enumerate(row):
            selected[b, h, :count] = permutation(total - 1, rng)[:count].to(torch.int32)
    lists = torch.arange(1, total, dtype=torch.int32, device=rng.device).expand(batch, -1)
    seq_lens = torch.full((batch,), (total - 1) * page_size - 3, device=rng.device)
    found = reference.resolve(selected, lists, seq_lens, table, page_size)

    misses, valid, first, last = found.misses, found.valid, found.num_hits, found.num_selected
    q = normal((batch, heads * shape.group, shape.dim), shape.dtype, rng)
    scale = shape.dim**-0.5
    exact = exact_attend(q, host.transpose(0, 1), found.misses, found.valid, scale, page_size)
    pinned = host.cpu().pin_memory() if rng.device.type == "cuda" else host
    staged = torch.full((batch * heads, room, 2, shape.block), torch.nan, dtype=shape.kv, device=rng.device)
    parts = kernels.attend_fetch(q, pinned, misses, valid, first, last, scale, page_size, staged=staged)
    out, lse = merged(parts, batch)
    filled = exact[1] > -torch.inf
    assert torch.equal(lse > -torch.inf, filled)
    assert relative_error(out, exact[0]) < TOLERANCE[shape.dtype]
    assert (lse[filled] - exact[1][filled]).abs().max() < max(TOLERANCE[shape.dtype] / 4, 2e-5)

    expected, defined = frames.clone(), frames.clone()
    for head in range(heads):
        kept = [misses[b, head, first[b, head] : last[b, head]][:room] for b in range(batch)]
        missed = torch.cat(kept).unique()
        free = torch.tensor(sorted(set(range(num_frames)) - set(table[head].tolist())), device=rng.device)
        chosen = missed[: missed.numel() // 2].long()
        table[head, chosen] = free[: chosen.numel()].to(torch.int32)
        expected[head, table[head, chosen].long()] = host[chosen, head]
    fetched, counted = (torch.tensor(5, device=rng.device) for _ in range(2))
    kernels.fill(staged, misses, first, last, table, frames, fetched)
    reference.fill(staged, misses, first, last, table, defined, counted)
    assert fetched.item() == counted.item() == 5 + int((last - first).sum())
    for filled_frames in (frames, defined):
        torch.testing.assert_close(filled_frames, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("room", [13, 2])
@pytest.mark.parametrize("shape", [*SHAPES, *EIGHT_BIT_SHAPES], ids=str)
def test_attend_fetch_equals_attention_over_the_misses_and_fills_frames(
    shape: Shape, room: int, rng: torch.Generator
) -> None:
    counts = [[11, 3], [0, 1], [9, 8]]
    check(shape, [row[: shape.heads] for row in counts], 13, 20, room, rng)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES[::7], ids=str)
def test_attend_fetch_from_pinned_memory_on_long_lists(shape: Shape, rng: torch.Generator) -> None:
    counts = integers(0, 120, (3, shape.heads), rng).tolist()
    check(shape, counts, 128, 300, 40, rng)
