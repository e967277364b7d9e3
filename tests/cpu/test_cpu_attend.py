"""The CPU kernel equals attention in float64, with every variant, on ragged and adversarial page lists."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from cpu_cases import ARITHMETICS, BFLOAT16_ISAS, DTYPES, Case, assert_attended, random_case
from hypothesis import given
from hypothesis import strategies as st

from rheo_kernels import reference
from rheo_kernels.cpu import attend, available_isas
from rheo_kernels.types.kv_scales import EIGHT_BITS


@pytest.mark.parametrize(("isa", "dtype"), ARITHMETICS, indirect=["isa"], ids=str)
@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
def test_ragged_lists(isa: str, dtype: torch.dtype, page_size: int, dim: int) -> None:
    for group in (1, 3, 4, 7, 8):
        case = random_case(dtype, group, page_size, dim, batch=2, width=4)
        assert_attended(case, attend(*case.operands, threads=2), isa)


@pytest.mark.parametrize("group", [2, 5, 6, 12, 16, 17, 33])
@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_any_group_size(isa: str, group: int, page_size: int) -> None:
    case = random_case(torch.bfloat16, group, page_size, 80)
    assert_attended(case, attend(*case.operands, threads=2), isa)


def test_eight_bits_are_what_they_stand_for(isa: str) -> None:
    """Every number there is, subnormals and NaN included: a page's only token is the attention's output."""
    blocks = torch.zeros(1, 16, 2, 16 * 16, dtype=torch.uint8)
    blocks[0, :, 1, :16] = torch.arange(256, dtype=torch.uint8).view(16, 16)
    blocks = blocks.view(EIGHT_BITS).transpose(0, 1)
    index, valid = torch.zeros(1, 16, 1, dtype=torch.int32), torch.ones(1, 16, 1, dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        out, _ = attend(torch.zeros(1, 16, 16, dtype=dtype), blocks, index, valid, 1.0, 16)
        torch.testing.assert_close(
            out.flatten(), blocks[:, 0, 1, :16].float().flatten(), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, EIGHT_BITS], ids=str)
def test_float32_queries_of_narrow_pages_are_not_rounded(isa: str, dtype: torch.dtype) -> None:
    case = random_case(dtype, query_dtype=torch.float32)
    assert_attended(case, attend(*case.operands))


@pytest.mark.parametrize("threads", range(1, 9))
def test_any_number_of_threads(threads: int) -> None:
    case = random_case(batch=2, heads=3, pages=40, width=50)
    assert_attended(case, attend(*case.operands, threads=threads))


@pytest.mark.parametrize("pages", [1, 2, 3, 7, 16, 65, 200])
def test_one_row_split_over_threads(isa: str, pages: int) -> None:
    case = random_case(torch.bfloat16, batch=1, heads=1, pages=pages, width=pages)
    case.index[0, 0] = torch.randperm(pages).int()
    case.valid.fill_(case.page_size)
    for threads in (1, 2, 5):
        assert_attended(case, attend(*case.operands, threads=threads), isa)


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(0, 5),
    heads=st.integers(1, 4),
    group=st.integers(1, 9),
    pages=st.integers(1, 30),
    width=st.integers(0, 40),
    page_size=st.sampled_from([16, 32, 64]),
    dim=st.sampled_from([16, 48, 64]),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 6),
)
def test_any_problem(
    seed: int,
    batch: int,
    heads: int,
    group: int,
    pages: int,
    width: int,
    page_size: int,
    dim: int,
    dtype: torch.dtype,
    threads: int,
) -> None:
    torch.manual_seed(seed)
    case = random_case(dtype, group, page_size, dim, batch, heads, pages, width)
    assert_attended(case, attend(*case.operands, threads=threads), available_isas()[-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(dtype: torch.dtype) -> None:
    case = random_case(dtype, batch=4, pages=9, width=9, page_size=32, dim=128)
    assert_attended(case, reference.attend(*case.operands))
    assert_attended(case, attend(*case.operands), available_isas()[-1])


def test_an_empty_list_is_the_empty_partial(isa: str) -> None:
    case = random_case(torch.bfloat16)
    out, lse = attend(case.q, case.blocks, torch.full_like(case.index, -1), case.valid, 1.0, case.page_size)
    assert torch.equal(out, torch.zeros(case.q.shape))
    assert torch.equal(lse, torch.full(case.q.shape[:2], -math.inf))


def test_a_listed_page_without_valid_tokens_is_the_empty_partial() -> None:
    case = random_case()
    out, lse = attend(case.q, case.blocks, case.index, torch.zeros_like(case.valid), 1.0, case.page_size)
    assert not out.any()
    assert torch.equal(lse, torch.full(case.q.shape[:2], -math.inf))


@pytest.mark.parametrize(("batch", "width"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_attend(batch: int, width: int) -> None:
    case = random_case(batch=batch, width=width)
    out, lse = attend(*case.operands)
    assert out.shape == case.q.shape
    assert torch.equal(out, torch.zeros(case.q.shape))
    assert torch.equal(lse, torch.full(case.q.shape[:2], -math.inf))


@pytest.mark.parametrize(("isa", "dtype"), ARITHMETICS, indirect=["isa"], ids=str)
def test_a_single_token_returns_its_value_and_its_logit(isa: str, dtype: torch.dtype) -> None:
    case = random_case(dtype, group=3, batch=1, heads=1, pages=2, width=1)
    case.index.fill_(1)
    case.valid.fill_(1)
    out, lse = attend(*case.operands)
    keys = reference.block_keys(case.blocks, 16)[0, 1, :, 0]
    values = reference.block_values(case.blocks, 16)[0, 1, 0]
    torch.testing.assert_close(out[0], values.float().expand(3, -1))
    torch.testing.assert_close(lse[0], case.scale * case.q[0].float() @ keys.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_all_masked_but_one_token_in_every_page(isa: str, page_size: int) -> None:
    case = random_case(torch.bfloat16, page_size=page_size)
    case.valid.clamp_(max=1)
    assert_attended(case, attend(*case.operands), isa)


@pytest.mark.parametrize("scale", [1.0, 0.0, -0.2])
def test_any_scale(isa: str, scale: float) -> None:
    case = replace(random_case(torch.bfloat16, page_size=32), scale=scale)
    assert_attended(case, attend(*case.operands), isa)


@pytest.mark.parametrize(("isa", "dtype"), ARITHMETICS, indirect=["isa"], ids=str)
@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_every_number_of_valid_tokens(isa: str, dtype: torch.dtype, page_size: int) -> None:
    case = random_case(dtype, 2, page_size, 32, batch=page_size, heads=1, pages=page_size, width=1)
    case.index[:, 0, 0] = torch.randperm(page_size).int()
    case.valid[:, 0, 0] = torch.arange(1, page_size + 1)
    assert_attended(case, attend(*case.operands), isa)


@pytest.mark.parametrize(("isa", "dtype"), ARITHMETICS, indirect=["isa"], ids=str)
@pytest.mark.parametrize(("page_size", "dim"), [(16, 48), (32, 64), (64, 80)])
def test_tokens_past_the_valid_ones_do_not_matter(
    isa: str, dtype: torch.dtype, page_size: int, dim: int
) -> None:
    case = random_case(dtype, 5, page_size, dim, batch=1, pages=6, width=6)
    expected = case.expected()
    keys = reference.block_keys(case.blocks, page_size)
    values = reference.block_values(case.blocks, page_size)
    for _, head, column in (case.index >= 0).nonzero().tolist():
        page, tokens = int(case.index[0, head, column]), int(case.valid[0, head, column])
        keys[head, page, :, tokens:] = math.nan
        values[head, page, tokens:] = math.inf
        values[head, page, tokens + 1 :] = math.nan
    assert_attended(case, attend(*case.operands), isa, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_huge_logits_neither_overflow_nor_lose_the_largest(
    isa: str, dtype: torch.dtype, magnitude: float
) -> None:
    case = random_case(dtype, batch=1, heads=1, pages=4, width=4)
    case.index[0, 0] = torch.arange(4)
    case.valid.fill_(16)
    query = case.q[0, 1].float()
    keys = reference.block_keys(case.blocks, 16)
    keys[0, 2, :, 5] = (magnitude / case.scale * query / query.square().sum()).to(dtype)
    result = attend(*case.operands)
    assert_attended(case, result, isa)
    if magnitude > 0:
        values = reference.block_values(case.blocks, 16)
        torch.testing.assert_close(result[0][0, 1], values[0, 2, 5].float())


def test_all_logits_hugely_negative_still_average_the_values(isa: str) -> None:
    case = random_case(torch.bfloat16, group=1, batch=1, heads=1, pages=2, width=2)
    reference.block_keys(case.blocks, 16).fill_(-1e4)
    case.q.fill_(1.0)
    case.index[0, 0] = torch.arange(2)
    case.valid.fill_(16)
    assert_attended(case, attend(*case.operands), isa)


def test_an_outlier_in_a_later_page_rescales_the_earlier_ones(isa: str) -> None:
    case = random_case(torch.float32, batch=1, heads=1, pages=6, width=6)
    keys = reference.block_keys(case.blocks, 16)
    for page in range(6):
        keys[0, page] *= 1.0 + page
    case.index[0, 0] = torch.arange(6)
    case.valid.fill_(16)
    assert_attended(case, attend(*case.operands, threads=1), isa)


@pytest.mark.parametrize(
    ("dtype", "page_size", "dim", "group"),
    [
        (torch.float32, 16, 64, 4),
        (torch.bfloat16, 16, 64, 4),
        (torch.bfloat16, 32, 80, 5),
        (torch.bfloat16, 64, 128, 18),
    ],
    ids=str,
)
@pytest.mark.parametrize("rise", [0.5, 3.0, 7.9, 8.1, 12.0, -3.0, -12.0])
def test_logits_that_rise_or_fall_from_page_to_page(
    isa: str, dtype: torch.dtype, rise: float, page_size: int, dim: int, group: int
) -> None:
    pages = 12
    case = random_case(dtype, group, page_size, dim, batch=1, heads=1, pages=pages, width=pages)
    query = case.q[0, 1].float()
    keys = reference.block_keys(case.blocks, page_size)
    for page in range(pages):
        keys[0, page] += (rise * page / case.scale * query / query.square().sum())[:, None].to(dtype)
    case.index[0, 0] = torch.arange(pages)
    case.valid.fill_(page_size)
    assert_attended(case, attend(*case.operands, threads=1), isa)


def test_strides_of_blocks_queries_and_lists() -> None:
    case = random_case(batch=2, heads=2, pages=5, width=4)
    wide = torch.randn(2, 3, 2, 8, 64)
    strided = Case(
        wide[:, 1].transpose(1, 2).flatten(1, 2)[:, ::2],
        torch.randn(4, 5, 3, 2, 64 * 16)[::2, :, 1],
        torch.stack([case.index, case.index], 1)[:, 1],
        case.valid.repeat_interleave(2, 2)[:, :, ::2],
        16,
        0.125,
    )
    assert not strided.q.is_contiguous()
    assert strided.valid.stride(2) == 2
    assert_attended(strided, attend(*strided.operands))


def test_given_buffers_receive_the_result() -> None:
    case = random_case()
    expected = attend(*case.operands, threads=1)
    out, lse = torch.full(case.q.shape, math.nan), torch.full(case.q.shape[:2], math.nan)
    returned = attend(*case.operands, out, lse, threads=1)
    assert returned[0] is out
    assert returned[1] is lse
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


def test_given_buffers_may_be_strided() -> None:
    case = random_case()
    expected = attend(*case.operands, threads=1)
    out, lse = torch.empty(*case.q.shape, 2)[..., 0], torch.empty(*case.q.shape[:2], 2)[..., 1]
    attend(*case.operands, out, lse, threads=1)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_split_of_the_pages_merges_to_the_whole(isa: str, dtype: torch.dtype) -> None:
    case = random_case(dtype, batch=1, pages=40, width=40)
    case.index[0] = torch.arange(40)
    case.valid.fill_(16)
    left = torch.rand(1, 2, 40) < 0.5
    parts = [
        attend(case.q, case.blocks, case.index.masked_fill(side, -1), case.valid, case.scale, 16)
        for side in (left, ~left)
    ]
    assert_attended(case, reference.merge(*parts[0], *parts[1]), isa)


def test_weights_sum_to_one_in_every_variant(isa: str) -> None:
    case = random_case(torch.bfloat16, pages=30, width=30)
    reference.block_values(case.blocks, 16).fill_(1.0)
    out, lse = attend(*case.operands)
    torch.testing.assert_close(out, (lse > -math.inf)[..., None].expand_as(out).float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page_size": 24}, "page_size is 24; allowed: 16, 32, 64."),
        ({"q": torch.zeros(3, 8, 24)}, "head size is 24; allowed: multiples of 16."),
        ({"q": torch.zeros(3, 7, 64)}, "7 query heads; allowed: multiples of the 2 KV heads."),
        ({"q": torch.zeros(3, 8, 80)}, "blocks end in (2, 1024); allowed: (2, 1280)."),
        ({"q": torch.zeros(3, 8, 64).half()}, "q is torch.float16; allowed: torch.float32 as the blocks"),
        ({"q": torch.zeros(8, 64)}, "q and blocks have 2 and 4 dimensions; allowed: 3 and 4."),
        ({"blocks": torch.zeros(2, 7, 2, 1024).double()}, "blocks are torch.float64; allowed: float32"),
        ({"blocks": torch.zeros(2, 7, 2, 2048)[..., ::2]}, "allowed: contiguous [2, D * P]."),
        ({"index": torch.zeros(3, 2, 6).long()}, "index is torch.int64; allowed: int32."),
        ({"valid": torch.zeros(3, 2, 5).int()}, "valid is (3, 2, 5); allowed: [3, 2, S]"),
        ({"blocks": torch.zeros(2, 7, 2, 1024, device="meta")}, "blocks are on meta; allowed: cpu."),
        ({"threads": 0}, "threads is 0; allowed: 1 to 1024."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_operands_are_one_sentence(change: dict, message: str) -> None:
    case = random_case()
    names = ("q", "blocks", "index", "valid", "scale", "page_size")
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        attend(**{**dict(zip(names, case.operands, strict=True)), **change})
    assert "\n" not in str(raised.value)


def test_a_block_that_does_not_exist_is_an_error() -> None:
    case = random_case(batch=1, heads=1, pages=3, width=2)
    case.index[0, 0] = torch.tensor([1, 3])
    case.valid.fill_(4)
    with pytest.raises(IndexError, match="1 listed blocks do not exist; allowed: 0 to 2, -1 for none"):
        attend(*case.operands)


def test_an_unknown_variant_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHEO_CPU_ISA", "sse9")
    allowed = ", ".join(available_isas())
    with pytest.raises(ValueError, match=rf"^RHEO_CPU_ISA is 'sse9'; allowed on this machine: {allowed}\.$"):
        attend(*random_case().operands)


@pytest.mark.parametrize("missing", ["avx2", "avx512f", *BFLOAT16_ISAS[:2]])
def test_a_variant_the_machine_lacks_is_an_error(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing in available_isas():
        pytest.skip(f"this machine has {missing}")
    monkeypatch.setenv("RHEO_CPU_ISA", missing)
    with pytest.raises(ValueError, match=f"RHEO_CPU_ISA is '{missing}'; allowed on this machine"):
        attend(*random_case().operands)
