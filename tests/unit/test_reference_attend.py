"""attend equals attention computed token by token, on ragged and adversarial page lists."""

from __future__ import annotations

import math

import pytest
import torch

from rheo_kernels.reference import attend, merge
from unit import plain


def ragged_lists(
    batch: int, heads: int, blocks: int, width: int, page_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Page lists of random lengths (0 to ``width``), each followed or interrupted by empty columns."""
    index = torch.full((batch, heads, width), -1, dtype=torch.int32)
    valid = torch.zeros(batch, heads, width, dtype=torch.int32)
    for request in range(batch):
        for head in range(heads):
            count = int(torch.randint(0, width + 1, ()))
            columns = torch.randperm(width)[:count]
            index[request, head, columns] = torch.randperm(blocks)[:count].int()
            valid[request, head, columns] = torch.randint(1, page_size + 1, (count,)).int()
    return index, valid


def random_pages(heads: int, blocks: int, page_size: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(heads, blocks, page_size, dim), torch.randn(heads, blocks, page_size, dim)


def assert_equals_dense(
    result: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    out, lse = result
    torch.testing.assert_close(out.double(), expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected[1], rtol=1e-5, atol=1e-5)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize(("group", "dim"), [(1, 64), (3, 64), (4, 80), (8, 128)])
def test_ragged_lists_equal_attention_token_by_token(page_size: int, group: int, dim: int) -> None:
    batch, heads, blocks, width = 3, 2, 6, 4
    q = torch.randn(batch, heads * group, dim)
    keys, values = random_pages(heads, blocks, page_size, dim)
    index, valid = ragged_lists(batch, heads, blocks, width, page_size)
    scale = dim**-0.5
    result = attend(q, plain.pack(keys, values), index, valid, scale, page_size)
    assert_equals_dense(result, plain.attend(q, keys, values, index, valid, scale))


def test_an_empty_list_is_the_empty_partial() -> None:
    blocks = plain.pack(*random_pages(2, 3, 16, 8))
    index = torch.full((2, 2, 3), -1, dtype=torch.int32)
    out, lse = attend(torch.randn(2, 6, 8), blocks, index, torch.zeros_like(index), 1.0, 16)
    assert torch.equal(out, torch.zeros(2, 6, 8))
    assert torch.equal(lse, torch.full((2, 6), -math.inf))


def test_a_listed_page_without_valid_tokens_is_the_empty_partial() -> None:
    blocks = plain.pack(*random_pages(1, 3, 16, 8))
    index = torch.tensor([[[1, 2]]], dtype=torch.int32)
    out, lse = attend(torch.randn(1, 2, 8), blocks, index, torch.zeros_like(index), 1.0, 16)
    assert not out.any()
    assert torch.equal(lse, torch.full((1, 2), -math.inf))


def test_no_columns_at_all_is_the_empty_partial() -> None:
    blocks = plain.pack(*random_pages(2, 3, 16, 8))
    index = torch.empty(2, 2, 0, dtype=torch.int32)
    out, lse = attend(torch.randn(2, 4, 8), blocks, index, index, 1.0, 16)
    assert out.shape == (2, 4, 8)
    assert torch.equal(lse, torch.full((2, 4), -math.inf))


def test_a_single_token_returns_its_value_and_its_logit() -> None:
    keys, values = random_pages(1, 2, 16, 64)
    q = torch.randn(1, 3, 64)
    index = torch.tensor([[[1]]], dtype=torch.int32)
    out, lse = attend(q, plain.pack(keys, values), index, torch.ones_like(index), 0.125, 16)
    torch.testing.assert_close(out[0], values[0, 1, 0].expand(3, -1))
    torch.testing.assert_close(lse[0], 0.125 * q[0] @ keys[0, 1, 0])


def test_tokens_past_the_valid_ones_are_never_read() -> None:
    page_size, dim = 32, 16
    keys, values = random_pages(2, 4, page_size, dim)
    q = torch.randn(2, 4, dim)
    index = torch.tensor([[[0, 2], [3, -1]], [[1, -1], [-1, 0]]], dtype=torch.int32)
    valid = torch.tensor([[[1, 32], [5, 0]], [[31, 0], [0, 1]]], dtype=torch.int32)
    expected = plain.attend(q, keys, values, index, valid, 1.0)
    for request, head, column in (index >= 0).nonzero().tolist():
        page, tokens = int(index[request, head, column]), int(valid[request, head, column])
        keys[head, page, tokens:] = math.nan
        values[head, page, tokens:] = math.inf
    keys[1, 1:3], values[0, 3] = math.nan, math.nan
    assert_equals_dense(attend(q, plain.pack(keys, values), index, valid, 1.0, page_size), expected)


def test_all_masked_but_one_token_in_every_page() -> None:
    keys, values = random_pages(2, 5, 64, 16)
    q = torch.randn(2, 8, 16)
    index = torch.stack([torch.randperm(5)[:4] for _ in range(4)]).view(2, 2, 4).int()
    valid = torch.ones_like(index)
    result = attend(q, plain.pack(keys, values), index, valid, 0.25, 64)
    assert_equals_dense(result, plain.attend(q, keys, values, index, valid, 0.25))


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_huge_logits_neither_overflow_nor_lose_the_largest(magnitude: float) -> None:
    page_size, dim = 16, 64
    keys, values = random_pages(1, 4, page_size, dim)
    q = torch.randn(1, 4, dim)
    keys[0, 2, 5] = magnitude * q[0, 1] / q[0, 1].square().sum()
    index = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.int32)
    valid = torch.full_like(index, page_size)
    result = attend(q, plain.pack(keys, values), index, valid, 1.0, page_size)
    assert_equals_dense(result, plain.attend(q, keys, values, index, valid, 1.0))
    if magnitude > 0:
        torch.testing.assert_close(result[0][0, 1], values[0, 2, 5])
        torch.testing.assert_close(float(result[1][0, 1]), magnitude, rtol=1e-5, atol=0)


def test_all_logits_hugely_negative_still_average_the_values() -> None:
    values = torch.randn(1, 2, 16, 8)
    keys = torch.full((1, 2, 16, 8), -1e4)
    index = torch.tensor([[[0, 1]]], dtype=torch.int32)
    valid = torch.full_like(index, 16)
    out, lse = attend(torch.ones(1, 2, 8), plain.pack(keys, values), index, valid, 1.0, 16)
    torch.testing.assert_close(out[0], values.mean((0, 1, 2)).expand(2, -1))
    torch.testing.assert_close(lse, torch.full((1, 2), -8e4 + math.log(32)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_blocks_are_attended_in_float32(dtype: torch.dtype) -> None:
    keys, values = (pages.to(dtype) for pages in random_pages(2, 4, 16, 64))
    q = torch.randn(2, 8, 64).to(dtype)
    index, valid = ragged_lists(2, 2, 4, 3, 16)
    result = attend(q, plain.pack(keys, values), index, valid, 0.125, 16)
    assert result[0].dtype == result[1].dtype == torch.float32
    assert_equals_dense(result, plain.attend(q, keys, values, index, valid, 0.125))


def test_host_pages_are_read_through_a_strided_view() -> None:
    keys, values = random_pages(3, 5, 16, 64)
    host = plain.pack(keys, values).transpose(0, 1).contiguous()
    view = host.transpose(0, 1)
    assert not view.is_contiguous()
    q = torch.randn(2, 9, 64)
    index, valid = ragged_lists(2, 3, 5, 4, 16)
    result = attend(q, view, index, valid, 0.125, 16)
    assert_equals_dense(result, plain.attend(q, keys, values, index, valid, 0.125))


def test_given_buffers_receive_the_result() -> None:
    keys, values = random_pages(2, 4, 16, 16)
    q = torch.randn(2, 4, 16)
    index, valid = ragged_lists(2, 2, 4, 3, 16)
    blocks = plain.pack(keys, values)
    out, lse = torch.full((2, 4, 16), math.nan), torch.full((2, 4), math.nan)
    returned = attend(q, blocks, index, valid, 0.25, 16, out, lse)
    assert returned[0] is out
    assert returned[1] is lse
    expected = attend(q, blocks, index, valid, 0.25, 16)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


@pytest.mark.parametrize("pages", [1, 7, 40])
def test_any_split_of_the_pages_merges_to_the_whole(pages: int) -> None:
    keys, values = random_pages(2, pages, 16, 32)
    blocks = plain.pack(keys, values)
    q = torch.randn(1, 6, 32)
    index = torch.arange(pages, dtype=torch.int32).expand(1, 2, -1).clone()
    valid = torch.full_like(index, 16)
    left = torch.rand(1, 2, pages) < 0.5
    parts = [attend(q, blocks, index.masked_fill(side, -1), valid, 0.2, 16) for side in (left, ~left)]
    assert_equals_dense(merge(*parts[0], *parts[1]), plain.attend(q, keys, values, index, valid, 0.2))
