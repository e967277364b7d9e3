"""load_admitted copies the host pages of those candidates that have a frame, and writes nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch
from triton_cases import GPU, GPU_SHAPES, Shape, integers, normal, permutation, pinned, same

from rheo_kernels.types.kv_scales import EIGHT_BITS

pytestmark = pytest.mark.usefixtures("cuda_kernels")

PAGES = 300


def expected_frames(
    table: torch.Tensor, candidates: list[list[torch.Tensor]], host: torch.Tensor, frames: torch.Tensor
) -> torch.Tensor:
    """Frames once the candidates of every request and head that the table knows are in theirs."""
    expected = frames.clone()
    for lists in candidates:
        for head, pages in enumerate(lists):
            resident = pages[table[head, pages] >= 0].long()
            expected[head, table[head, resident].long()] = host[resident, head]
    return expected


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        *itertools.product(GPU_SHAPES[:: 3 if GPU else 9], [1, 3]),
        (Shape(2, 4, 80, 16, torch.bfloat16, EIGHT_BITS), 3),
    ],
    ids=str,
)
def test_admitted_misses_and_runners_up_are_loaded_and_nothing_else(
    shape: Shape, batch: int, rng: torch.Generator
) -> None:
    from rheo_kernels.cuda.load import Candidates, load_admitted
    from rheo_kernels.types import RunnersUp, Selected

    heads, width, room = shape.heads, 150, 9
    host = normal((PAGES, heads, 2, shape.block), shape.kv, rng)
    frames = torch.full((heads, PAGES + 20, 2, shape.block), torch.nan, dtype=shape.kv, device=rng.device)
    table = torch.full((heads, PAGES), -1, dtype=torch.int32, device=rng.device)
    for head in range(heads):
        resident = permutation(PAGES, rng)[: PAGES // 2].long()
        table[head, resident] = permutation(PAGES + 20, rng)[: PAGES // 2].to(torch.int32)
    selected = Selected.allocate(batch, heads, width, rng.device)
    for b in range(batch):
        for head in range(heads):
            selected.misses[b, head] = permutation(PAGES, rng)[:width].to(torch.int32)
    first = integers(0, 60, (batch, heads), rng)
    last = first + integers(0, 91, (batch, heads), rng)
    cpu_begin = first + (last - first) // 3
    last[0, 0] = cpu_begin[0, 0] = first[0, 0]
    selected.num_hits.copy_(first)
    selected.num_selected.copy_(last)
    ahead = RunnersUp(integers(0, PAGES, (batch, heads, 70), rng), integers(0, 71, (batch, heads), rng))
    host_pages = pinned(host)

    begin = torch.minimum(cpu_begin, first + room)
    misses = [[selected.misses[b, h, begin[b, h] : last[b, h]] for h in range(heads)] for b in range(batch)]
    listed = [[ahead.pages[b, h, : ahead.counts[b, h]] for h in range(heads)] for b in range(batch)]
    expected = expected_frames(table, misses, host, frames)
    load_admitted(host_pages, table, frames, Candidates.of_misses(selected, cpu_begin, room))
    assert same(frames, expected)

    frames.fill_(torch.nan)
    expected = expected_frames(table, misses + listed, host, frames)
    both = Candidates.of_misses(selected, cpu_begin, room), Candidates.of_runners_up(ahead)
    load_admitted(host_pages, table, frames, *both)
    assert same(frames, expected)
