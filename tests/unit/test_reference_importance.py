"""importance: ranks lie in (0, 1], and a page counts once per step, with its best rank."""

from __future__ import annotations

import math

import pytest
import torch

from rheo_kernels.reference import rank_normalise, update_importance


def ragged_scores() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores ``[B=3, H=2, M=6]`` of requests with 6, 1 and 3 pages."""
    num_pages = torch.tensor([6, 1, 3], dtype=torch.int32)
    scores = torch.randn(3, 2, 6)
    return scores.masked_fill(torch.arange(6) >= num_pages[:, None, None], -math.inf), num_pages


def test_the_best_page_ranks_1_and_the_worst_one_share() -> None:
    scores, num_pages = ragged_scores()
    ranks = rank_normalise(scores, num_pages)
    for request, count in enumerate(num_pages.tolist()):
        for head in range(2):
            ordered = ranks[request, head, :count][scores[request, head, :count].argsort()]
            torch.testing.assert_close(ordered, torch.arange(1, count + 1) / count)


def test_ranks_of_equal_scores_still_lie_in_the_unit_interval_and_differ() -> None:
    ranks = rank_normalise(torch.zeros(1, 1, 5), torch.tensor([5], dtype=torch.int32))
    torch.testing.assert_close(ranks.flatten().sort().values, torch.arange(1, 6) / 5)


def test_ranks_do_not_depend_on_the_magnitude_of_the_scores() -> None:
    scores, num_pages = ragged_scores()
    assert torch.equal(rank_normalise(scores, num_pages), rank_normalise(scores * 1e4, num_pages))


def fold_page_by_page(
    importance: torch.Tensor,
    ranks: torch.Tensor,
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    alpha: float,
    first_alpha: float,
) -> torch.Tensor:
    expected = importance.double().clone()
    for head in range(importance.shape[0]):
        best: dict[int, float] = {}
        for request, count in enumerate(num_pages.tolist()):
            for column in range(count):
                page = int(pages[request, column])
                best[page] = max(best.get(page, 0.0), float(ranks[request, head, column]))
        for page, rank in best.items():
            before = float(importance[head, page])
            weight = alpha if before else first_alpha
            expected[head, page] = (1 - weight) * before + weight * rank
    return expected


@pytest.mark.parametrize(
    ("alpha", "first_alpha"), [(0.01, None), (0.3, None), (0.3, 1.0), (0.7, 1.0), (1.0, None)]
)
def test_a_shared_page_is_folded_once_with_its_highest_rank(alpha: float, first_alpha: float | None) -> None:
    pages = torch.tensor([[7, 2, 5, 1, 3, 4], [7, 9, 9, 9, 9, 9], [7, 2, 8, 9, 9, 9]], dtype=torch.int32)
    scores, num_pages = ragged_scores()
    ranks = rank_normalise(scores, num_pages)
    importance = torch.rand(2, 10)
    importance[0, [7, 2, 8]] = 0.0
    expected = fold_page_by_page(importance, ranks, pages, num_pages, alpha, first_alpha or alpha)
    update_importance(importance, ranks, pages, num_pages, alpha, first_alpha)
    torch.testing.assert_close(importance.double(), expected, rtol=1e-6, atol=1e-6)


def test_importance_stays_in_the_unit_interval_over_many_steps() -> None:
    pages = torch.arange(1, 7, dtype=torch.int32).expand(3, 6)
    importance = torch.zeros(2, 8)
    for _ in range(200):
        scores, num_pages = ragged_scores()
        update_importance(importance, rank_normalise(scores, num_pages), pages, num_pages, 0.3)
        assert (importance >= 0).all()
        assert (importance <= 1).all()
    assert not importance[:, [0, 7]].any(), "pages that no request lists keep their importance"
    assert (importance[:, 1:7] > 0).all()


def test_a_page_always_ranked_first_becomes_fully_important() -> None:
    pages = torch.tensor([[1, 2]], dtype=torch.int32)
    importance = torch.zeros(1, 3)
    for _ in range(100):
        update_importance(importance, torch.tensor([[[1.0, 0.5]]]), pages, torch.tensor([2]), 0.3)
    torch.testing.assert_close(importance[0], torch.tensor([0.0, 1.0, 0.5]))
