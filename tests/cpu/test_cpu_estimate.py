"""Estimates in C++ equal their reference in float64, with every variant, on ragged and adversarial pages."""

from __future__ import annotations

import itertools

import pytest
import torch
from subcentroid_cases import CASES, KEYS, LENGTHS, Case, Geometry, make_case

from rheo_kernels import reference
from rheo_kernels.cpu import estimate

GROUPS, DIMS, PAGES, ROWS = (1, 4, 7, 16), (16, 32, 64, 128), (16, 32, 64), (2, 4, 8)


@pytest.fixture
def rng() -> torch.Generator:
    """Of the CPU, also where there is a GPU."""
    return torch.Generator().manual_seed(0)


def assert_estimated(case: Case, threads: int | None = None) -> None:
    operands = case.summaries, case.safe, case.seq_lens, case.scale, case.layout
    expected = reference.estimate(case.q.double(), *operands)
    found = estimate(case.q, *operands, threads=threads)
    listed = torch.isfinite(expected)
    assert torch.equal(found == -torch.inf, ~listed)
    tolerance = 2e-6 * expected[listed].abs().max().item() + 1e-5
    assert (found - expected)[listed].abs().max() < tolerance


@pytest.mark.parametrize(("geometry", "kind"), CASES)
def test_estimate_equals_reference(isa: str, geometry: Geometry, kind: str, rng: torch.Generator) -> None:
    assert_estimated(make_case(geometry, kind, rng))


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("row_tokens", ROWS)
def test_any_geometry(isa: str, page_size: int, dim: int, row_tokens: int, rng: torch.Generator) -> None:
    for group, kind in zip(GROUPS, itertools.cycle(KEYS), strict=False):
        geometry = Geometry(group, dim, page_size, row_tokens, torch.bfloat16)
        assert_estimated(make_case(geometry, kind, rng), threads=2)


@pytest.mark.parametrize("dim", [48, 80, 96, 256])
def test_head_sizes_without_four_runs(isa: str, dim: int, rng: torch.Generator) -> None:
    for page_size, row_tokens in ((16, 8), (32, 4)):
        assert_estimated(make_case(Geometry(3, dim, page_size, row_tokens, torch.float32), "offset", rng))


def test_every_length_of_a_last_page(isa: str, rng: torch.Generator) -> None:
    lengths = list(range(1, 70))
    assert_estimated(make_case(Geometry(2, 64, 32, 4, torch.float32), "normal", rng, lengths))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_lists_longer_than_a_run(threads: int, rng: torch.Generator) -> None:
    lengths = [16 * 129 - 3, 16 * 64, 16 * 64 + 1, 0, 16 * 200]
    assert_estimated(make_case(Geometry(7, 64, 16, 2, torch.float32), "needle", rng, lengths), threads)


def test_strided_summaries_queries_and_lists(isa: str, rng: torch.Generator) -> None:
    case = make_case(Geometry(4, 64, 32, 4, torch.bfloat16), "offset", rng)
    stored = torch.randint(
        256, (case.summaries.shape[1], 3, case.summaries.shape[0] + 1, case.layout.width + 5)
    )
    spread = stored.to(torch.uint8).transpose(0, 2)[1:, 1, :, 3:-2]
    spread.copy_(case.summaries)
    queries = torch.zeros((*case.q.shape[:2], 2 * case.q.shape[2]), dtype=case.q.dtype)[..., ::2]
    queries.copy_(case.q)
    operands = case.seq_lens.long(), case.scale, case.layout
    expected = estimate(case.q, case.summaries, case.safe, *operands)
    assert torch.equal(
        estimate(queries, spread, case.safe.repeat(1, 2)[:, : case.safe.shape[1]], *operands), expected
    )


def test_summaries_never_written_estimate_what_zero_keys_draw(isa: str) -> None:
    layout = Geometry(1, 64, 32, 4, torch.float32).layout
    summaries = torch.zeros((1, 2, layout.width), dtype=torch.uint8)
    pages, tokens = torch.tensor([[1]], dtype=torch.int32), torch.tensor([9], dtype=torch.int32)
    found = estimate(torch.randn(1, 1, 64), summaries, pages, tokens, 1.0, layout)
    assert found.exp().item() == pytest.approx(9.0, rel=1e-6)


def test_a_page_that_does_not_exist_is_named(rng: torch.Generator) -> None:
    case = make_case(Geometry(2, 64, 32, 4, torch.float32), "normal", rng, LENGTHS)
    case.pages[3, 1] = case.keys.shape[1]
    case.pages[2, 0] = -1
    with pytest.raises(IndexError, match=r"^4 listed pages do not exist; allowed: 0 to \d+\.$"):
        estimate(case.q, case.summaries, case.pages, case.seq_lens, case.scale, case.layout)


def test_bad_operands_are_refused(rng: torch.Generator) -> None:
    case = make_case(Geometry(2, 64, 32, 4, torch.float32), "normal", rng)
    q, summaries, pages, tokens, layout = case.q, case.summaries, case.safe, case.seq_lens, case.layout
    for bad, message in (
        ((q[0], summaries, pages, tokens), "q has 2 dimensions on cpu; allowed: 3"),
        ((q[..., :32], summaries, pages, tokens), "The head size is 32; allowed: 64"),
        ((q[:, :3], summaries, pages, tokens), "There are 3 query heads; allowed: multiples of the 2"),
        ((q, summaries[..., 1:], pages, tokens), "summaries are torch.uint8"),
        ((q, summaries, pages.long(), tokens), "pages are torch.int64"),
        ((q, summaries, pages, tokens.float()), "seq_lens are torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            estimate(*bad, case.scale, layout)
    with pytest.raises(ValueError, match=r"page_size is 24; allowed: 16, 32, 64\."):
        estimate(q, summaries, pages, tokens, case.scale, layout._replace(page_size=24))
