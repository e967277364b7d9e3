"""update_importance follows its reference within the bound its docstring states."""

from __future__ import annotations

import pytest
import torch
from test_triton_select import DISTRIBUTIONS, scores_of
from triton_cases import page_lists, to_device

from rheo_kernels import reference

ALPHA = 0.3


def ranks_of(scores: torch.Tensor, num_pages: torch.Tensor) -> torch.Tensor:
    """Ranks ``[B, H, M]`` that the kernel folds: with ``alpha`` 1, importance is the rank itself."""
    from rheo_kernels import triton as kernels

    batch, heads, columns = scores.shape
    ranks = torch.zeros_like(scores)
    for row in range(batch):
        importance = torch.full((heads, columns + 1), 0.5, device=scores.device)
        pages = torch.arange(1, columns + 1, dtype=torch.int32, device=scores.device)[None]
        kernels.update_importance(scores[row : row + 1], pages, num_pages[row : row + 1], 1.0, importance)
        ranks[row] = importance[:, 1:]
    return ranks


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("pages", [300, 65, 5, 1])
def test_ranks_keep_the_order_of_scores(kind: str, pages: int, rng: torch.Generator) -> None:
    num_pages = to_device([pages], rng)
    scores = scores_of(kind, (1, 2, pages + 2), num_pages, rng)
    ranks = ranks_of(scores, num_pages)[0, :, :pages]
    order = scores[0, :, :pages].argsort(dim=1)
    ordered = ranks.gather(1, order)
    assert (ordered.diff(dim=1) >= -1e-6).all()
    assert ranks.min() > 0
    assert ranks.max() <= 1 + 1e-6


@pytest.mark.parametrize("pages", [500, 90])
def test_ranks_of_smooth_scores_are_within_a_hundredth_and_tails_within_their_share(
    pages: int, rng: torch.Generator
) -> None:
    num_pages = to_device([pages, pages // 2], rng)
    scores = scores_of("normal", (2, 2, pages), num_pages, rng)
    exact = reference.rank_normalise(scores, num_pages)
    error = (ranks_of(scores, num_pages) - exact).abs()
    listed = torch.arange(pages, device=rng.device) < num_pages[:, None, None]
    error = error.masked_fill(~listed, 0.0)
    middle = (exact > 1 / 32) & (exact < 1 - 1 / 32) & listed
    assert error[middle].max() < 0.01 + 2 / pages
    assert error.max() <= 1 / 16


def test_ranks_are_not_blurred_by_outliers(rng: torch.Generator) -> None:
    num_pages = to_device([400], rng)
    scores = scores_of("normal", (1, 2, 400), num_pages, rng)
    scores[:, :, 0] = 1e4
    scores[:, :, 1] = -1e4
    exact = reference.rank_normalise(scores, num_pages)
    assert (ranks_of(scores, num_pages) - exact).abs().max() <= 0.01 + 2 / 400


def test_equal_scores_share_the_middle_rank(rng: torch.Generator) -> None:
    num_pages = to_device([100], rng)
    scores = torch.full((1, 1, 100), 2.5, device=rng.device)
    ranks = ranks_of(scores, num_pages)
    torch.testing.assert_close(ranks, torch.full_like(ranks, 1 - 49.5 / 100))


@pytest.mark.parametrize("first_alpha", [None, 1.0])
@pytest.mark.parametrize("shared", [0, 20])
def test_shared_pages_are_folded_once_with_their_best_rank(
    shared: int, first_alpha: float | None, rng: torch.Generator
) -> None:
    from rheo_kernels import triton as kernels

    counts = [150, 60, 90]
    num_pages = to_device(counts, rng)
    pages = page_lists(counts, 152, 400, rng)
    pages[1:, :shared] = pages[0, :shared]
    scores = scores_of("normal", (3, 2, 152), num_pages, rng)
    importance = torch.rand((2, 400), generator=rng, device=rng.device)
    importance[:, ::3] = 0.0
    before = importance.clone()
    scratch = torch.zeros((2, 400), dtype=torch.int32, device=rng.device)
    kernels.update_importance(scores, pages, num_pages, ALPHA, importance, scratch, first_alpha)
    expected = before.clone()
    ranks = ranks_of(scores, num_pages)
    reference.update_importance(expected, ranks, pages, num_pages, ALPHA, first_alpha)
    torch.testing.assert_close(importance, expected, rtol=1e-5, atol=1e-6)
    assert scratch.eq(0).all()


def test_a_page_without_a_rank_takes_its_first_one_whole(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    num_pages = to_device([40], rng)
    scores = scores_of("normal", (1, 2, 40), num_pages, rng)
    pages = torch.arange(1, 41, dtype=torch.int32, device=rng.device)[None]
    importance = torch.zeros((2, 41), device=rng.device)
    importance[:, 11:] = 0.5
    kernels.update_importance(scores, pages, num_pages, ALPHA, importance, first_alpha=1.0)
    ranks = ranks_of(scores, num_pages)[0]
    torch.testing.assert_close(importance[:, 1:11], ranks[:, :10])
    torch.testing.assert_close(importance[:, 11:], 0.5 + ALPHA * (ranks[:, 10:] - 0.5))


@pytest.mark.gpu
@pytest.mark.parametrize("columns", [1024, 4096, 32768])
def test_ranks_on_long_contexts(columns: int, rng: torch.Generator) -> None:
    num_pages = to_device([columns, columns // 3], rng)
    scores = scores_of("normal", (2, 8, columns), num_pages, rng)
    exact = reference.rank_normalise(scores, num_pages)
    listed = torch.arange(columns, device=rng.device) < num_pages[:, None, None]
    error = (ranks_of(scores, num_pages) - exact).abs().masked_fill(~listed, 0.0)
    middle = (exact > 1 / 32) & (exact < 1 - 1 / 32) & listed
    assert error[middle].max() < 0.02
    assert error.max() <= 1 / 16
