"""Dense attention of chunks equals float64 attention over everything before them, whichever implementation runs."""

from __future__ import annotations

import logging

import pytest
import torch
from triton_cases import Shape, normal, relative_error

from rheo_sglang.prefill import build_prefill_batch
from rheo_sglang.prefill.dense import dense_attention, torch_attention

SHAPES = [Shape(group=group, dim=dim, dtype=torch.float16) for group in (1, 4) for dim in (64, 80, 128)]
CHUNKS = [[(0, 70)], [(0, 3), (64, 33), (129, 1)], [(300, 200), (0, 40)]]


def check(shape: Shape, chunks: list[tuple[int, int]], rng: torch.Generator, chosen: bool = False) -> None:
    """Attend chunks of ``(prefix, length)`` tokens."""
    prefixes, lengths = zip(*chunks, strict=True)
    width = -(-max(map(sum, chunks)) // shape.page_size)
    lists = torch.zeros((len(chunks), width), dtype=torch.int32, device=rng.device)
    batch = build_prefill_batch(lists, prefixes, lengths, shape.page_size)
    q = normal((sum(lengths), shape.heads * shape.group, shape.dim), shape.dtype, rng)
    k, v = (normal((batch.staged_tokens, shape.heads, shape.dim), shape.dtype, rng) for _ in range(2))
    attend = dense_attention(rng.device, shape.dtype, shape.dim) if chosen else torch_attention
    out = attend(q, k, v, batch, shape.dim**-0.5)
    expected = []
    for (prefix, length), first, key in zip(chunks, batch.query_starts, batch.key_starts, strict=False):
        queries = q[first : first + length].double().unflatten(1, (shape.heads, -1))
        keys, values = (part[key : key + prefix + length].double() for part in (k, v))
        logits = torch.einsum("qhgd,thd->hgqt", queries, keys) * shape.dim**-0.5
        position = torch.arange(prefix + length, device=rng.device)
        logits.masked_fill_(position > position[prefix:, None], -torch.inf)
        expected.append(torch.einsum("hgqt,thd->qhgd", logits.softmax(3), values).flatten(1, 2))
    assert relative_error(out, torch.cat(expected)) < 2e-3


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_attends_everything_before_a_chunk(
    shape: Shape, chunks: list[tuple[int, int]], rng: torch.Generator
) -> None:
    check(shape, chunks, rng)


@pytest.mark.gpu
@pytest.mark.parametrize("chunks", [*CHUNKS, [(9000, 2048), (0, 1500), (4097, 5)]], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_chosen_one_attends_everything_before_a_chunk(
    shape: Shape, chunks: list[tuple[int, int]], rng: torch.Generator
) -> None:
    check(shape, chunks, rng, chosen=True)


def test_start_up_says_which_one_runs(rng: torch.Generator, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        dense_attention(rng.device, torch.float32, 64)
    assert caplog.messages == ["rheo: dense prefill with torch's attention"]
