"""attend equals dense softmax attention over the listed tokens, as computed in float64."""

from __future__ import annotations

import pytest
import torch
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
from rheo_kernels.types import Partials

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def exact_attend(
    q: torch.Tensor,
    blocks: torch.Tensor,
    index: torch.Tensor,
    valid: torch.Tensor,
    scale: float,
    page_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention of every query to its listed tokens, float64."""
    batch, queries, dim = q.shape
    heads = blocks.shape[0]
    group = queries // heads
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    lse = torch.full((batch, queries), -torch.inf, dtype=torch.float64, device=q.device)
    for b in range(batch):
        for h in range(heads):
            listed = index[b, h] >= 0
            block = index[b, h, listed].long()
            live = torch.arange(page_size, device=q.device) < valid[b, h, listed, None]
            if not bool(live.any()):
                continue
            keys = blocks[h, block, 0].double().view(-1, dim, page_size).transpose(1, 2)[live]
            values = blocks[h, block, 1].double().view(-1, page_size, dim)[live]
            span = slice(h * group, (h + 1) * group)
            logits = q[b, span].double() @ keys.T * scale
            out[b, span] = logits.softmax(1) @ values
            lse[b, span] = logits.logsumexp(1)
    return out, lse


def ragged_lists(
    counts: list[list[int]], width: int, blocks: int, page_size: int, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists ``[B, H, S]`` of distinct blocks, with holes, partial and empty pages among them."""
    shape = (len(counts), len(counts[0]), width)
    index = torch.full(shape, -1, dtype=torch.int32, device=rng.device)
    valid = torch.zeros(shape, dtype=torch.int32, device=rng.device)
    for b, row in enumerate(counts):
        for h, count in enumerate(row):
            places = permutation(width, rng)[:count]
            index[b, h, places] = permutation(blocks, rng)[:count].to(torch.int32)
            tokens = torch.full((count,), page_size, dtype=torch.int32, device=rng.device)
            if count > 2:
                tokens[0] = integers(1, page_size, (1,), rng)
                tokens[1] = 0
            valid[b, h, places] = tokens
    return index, valid


def check(shape: Shape, counts: list[list[int]], width: int, blocks: int, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    pool = normal((shape.heads, blocks, 2, shape.block), shape.kv, rng)
    index, valid = ragged_lists(counts, width, blocks, shape.page_size, rng)
    q = normal((len(counts), shape.heads * shape.group, shape.dim), shape.dtype, rng)
    scale = shape.dim**-0.5
    exact = exact_attend(q, pool, index, valid, scale, shape.page_size)
    out, lse = merged(kernels.attend(q, pool, index, valid, scale, shape.page_size), len(counts))
    filled = exact[1] > -torch.inf
    assert torch.equal(lse > -torch.inf, filled)
    assert out[~filled].eq(0).all()
    assert relative_error(out, exact[0]) < TOLERANCE[shape.dtype]
    assert (lse[filled] - exact[1][filled]).abs().max() < max(TOLERANCE[shape.dtype] / 4, 2e-5)


@pytest.mark.parametrize("shape", [*SHAPES, *EIGHT_BIT_SHAPES], ids=str)
def test_attend_equals_dense_attention(shape: Shape, rng: torch.Generator) -> None:
    counts = [[11, 3], [0, 1], [9, 8]]
    check(shape, [row[: shape.heads] for row in counts], 13, 14, rng)


def test_attend_equals_reference_without_splits(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    shape = Shape()
    pool = normal((2, 6, 2, shape.block), shape.dtype, rng)
    index, valid = ragged_lists([[4, 2]], 4, 6, 16, rng)
    q = normal((1, 8, 64), shape.dtype, rng)
    whole = Partials.allocate(2, 4, 64, 1, rng.device)
    actual = merged(kernels.attend(q, pool, index, valid, 0.125, 16, partials=whole), 1)
    expected = reference.attend(q, pool, index, valid, 0.125, 16)
    for mine, theirs in zip(actual, expected, strict=True):
        assert relative_error(mine, theirs) < 1e-5


def test_attend_range_leaves_out_the_other_columns(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    shape = Shape()
    pool = normal((2, 12, 2, shape.block), shape.dtype, rng)
    index, valid = ragged_lists([[10, 10], [10, 10]], 10, 12, 16, rng)
    first = torch.tensor([[0, 3], [10, 2]], dtype=torch.int32, device=rng.device)
    last = torch.tensor([[4, 10], [10, 9]], dtype=torch.int32, device=rng.device)
    column = torch.arange(10, device=rng.device)
    within = (column >= first[:, :, None]) & (column < last[:, :, None])
    q = normal((2, 8, 64), shape.dtype, rng)
    out, lse = merged(kernels.attend(q, pool, index, valid, 0.125, 16, first, last), 2)
    exact = exact_attend(q, pool, index.masked_fill(~within, -1), valid, 0.125, 16)
    assert relative_error(out, exact[0]) < 1e-5
    assert torch.equal(lse == -torch.inf, exact[1] == -torch.inf)


def test_attend_reads_host_page_layout(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    shape = Shape()
    host = normal((12, 2, 2, shape.block), shape.dtype, rng)
    index, valid = ragged_lists([[5, 7]], 8, 12, 16, rng)
    q = normal((1, 8, 64), shape.dtype, rng)
    out, _ = merged(kernels.attend(q, host.transpose(0, 1), index, valid, 0.125, 16), 1)
    exact = exact_attend(q, host.transpose(0, 1), index, valid, 0.125, 16)
    assert relative_error(out, exact[0]) < 1e-5


def test_attend_ignores_garbage_past_a_page_end(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    shape = Shape(heads=1)
    pool = normal((1, 2, 2, shape.block), shape.dtype, rng)
    index = torch.tensor([[[1, -1]]], dtype=torch.int32, device=rng.device)
    valid = torch.tensor([[[5, 0]]], dtype=torch.int32, device=rng.device)
    q = normal((1, 4, 64), shape.dtype, rng)
    exact = exact_attend(q, pool, index, valid, 0.125, 16)
    reference.block_keys(pool, 16)[:, 1, :, 5:] = torch.nan
    reference.block_values(pool, 16)[:, 1, 5:] = torch.inf
    out, lse = merged(kernels.attend(q, pool, index, valid, 0.125, 16), 1)
    assert relative_error(out, exact[0]) < 1e-5
    assert relative_error(lse, exact[1]) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_attend_equals_dense_attention_on_long_lists(shape: Shape, rng: torch.Generator) -> None:
    counts = [[200, 1, 199, 64, 0, 33, 128, 7], [3, 4, 5, 6, 7, 8, 9, 10]]
    check(shape, counts, 210, 256, rng)


@pytest.mark.gpu
def test_attend_replays_in_a_graph_with_new_lists(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    shape = Shape(heads=8, dim=128, page_size=32, dtype=torch.bfloat16)
    pool = normal((8, 600, 2, shape.block), shape.dtype, rng)
    q = normal((2, 32, 128), shape.dtype, rng)
    lists = [ragged_lists([[500] * 8, [20] * 8], 512, 600, 32, rng) for _ in range(2)]
    index, valid = (tensor.clone() for tensor in lists[0])
    out = torch.empty((2, 32, 128), device="cuda")
    parts = Partials.allocate(16, 4, 128, kernels.num_splits(16, 512), "cuda")

    def step() -> None:
        kernels.attend(q, pool, index, valid, 0.1, 32, partials=parts)
        kernels.merge(parts, None, out)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for new_index, new_valid in (*lists, *lists):
        index.copy_(new_index)
        valid.copy_(new_valid)
        graph.replay()
        exact = exact_attend(q, pool, new_index, new_valid, 0.1, 32)
        assert relative_error(out, exact[0]) < 1e-2
