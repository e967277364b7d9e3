"""bound and mean: Quest's bound really bounds, and the mean's score is the mean of the logits."""

from __future__ import annotations

import pytest
import torch

from rheo_kernels.reference import score
from rheo_sglang.selection import SUMMARIES

GROUPS = [1, 3, 4, 8]
BOUND, MEAN = SUMMARIES["bound"](), SUMMARIES["mean"]()


def paged_keys(heads: int, pages: int, page_size: int, dim: int) -> torch.Tensor:
    """Keys ``[H, N, P, D]`` whose pages differ in spread, with one page of huge and one of equal keys."""
    keys = torch.randn(heads, pages, page_size, dim) * torch.rand(heads, pages, 1, 1) * 4
    keys[:, 1] = keys[:, 1, :1]
    keys[:, 2] *= 1e3
    return keys


def bounding_boxes(keys: torch.Tensor) -> torch.Tensor:
    return torch.stack((keys.amin(2), keys.amax(2)), dim=2)


def page_lists() -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged lists over pages 0 to 6; entries past the last page are not even page numbers."""
    pages = torch.tensor([[3, 1, 2, 6], [5, 99, -7, 99], [2, 3, 99, 99]], dtype=torch.int32)
    return pages, torch.tensor([4, 1, 2], dtype=torch.int32)


def logits_in_page(q: torch.Tensor, keys: torch.Tensor, request: int, head: int, page: int) -> torch.Tensor:
    """True logits ``[G, P]`` of one request's query group with one page's keys, float64."""
    group = q.shape[1] // keys.shape[0]
    return q[request, head * group : (head + 1) * group].double() @ keys[head, page].double().T


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("grouping", ["mean", "max"])
def test_quest_bound_is_above_every_true_logit_in_the_page(group: int, grouping: str) -> None:
    keys = paged_keys(heads=2, pages=7, page_size=16, dim=32)
    q = torch.randn(3, 2 * group, 32)
    pages, num_pages = page_lists()
    scores = score(q, BOUND, bounding_boxes(keys), pages, num_pages, 0.5, grouping)
    for request in range(3):
        for head in range(2):
            for column in range(int(num_pages[request])):
                largest = logits_in_page(q, keys, request, head, int(pages[request, column])).amax(1)
                bounded = 0.5 * (largest.mean() if grouping == "mean" else largest.max())
                assert scores[request, head, column] >= bounded - 1e-3 * max(1.0, abs(float(bounded)))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("grouping", ["mean", "max"])
def test_quest_bound_is_the_best_corner_of_the_bounding_box(group: int, grouping: str) -> None:
    keys = paged_keys(heads=2, pages=7, page_size=16, dim=8)
    q = torch.randn(3, 2 * group, 8)
    pages, num_pages = page_lists()
    scores = score(q, BOUND, bounding_boxes(keys), pages, num_pages, 0.5, grouping)
    for request in range(3):
        for head in range(2):
            for column in range(int(num_pages[request])):
                page = keys[head, pages[request, column]].double()
                bounds = []
                for member in range(group):
                    query = q[request, head * group + member].double()
                    corner = torch.where(query > 0, page.amax(0), page.amin(0))
                    bounds.append(0.5 * float(query @ corner))
                expected = sum(bounds) / group if grouping == "mean" else max(bounds)
                assert float(scores[request, head, column]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("group", GROUPS)
def test_mean_summary_gives_the_logit_of_the_mean_key(group: int) -> None:
    keys = paged_keys(heads=2, pages=7, page_size=16, dim=32)
    q = torch.randn(3, 2 * group, 32)
    pages, num_pages = page_lists()
    scores = score(q, MEAN, keys.mean(2, keepdim=True), pages, num_pages, 0.5)
    for request in range(3):
        for head in range(2):
            for column in range(int(num_pages[request])):
                logits = logits_in_page(q, keys, request, head, int(pages[request, column]))
                expected = 0.5 * float(logits.mean())
                assert float(scores[request, head, column]) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_page_of_one_repeated_key_is_scored_exactly() -> None:
    keys = paged_keys(heads=1, pages=3, page_size=16, dim=32)
    q = torch.randn(1, 1, 32)
    pages, num_pages = torch.tensor([[1]], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
    logit = q[0, 0] @ keys[0, 1, 0]
    for summary, summaries in ((BOUND, bounding_boxes(keys)), (MEAN, keys.mean(2, keepdim=True))):
        torch.testing.assert_close(
            score(q, summary, summaries, pages, num_pages, 1.0)[0, 0, 0], logit, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_summaries_are_scored_in_float32(dtype: torch.dtype) -> None:
    summaries = torch.randn(2, 7, 2, 64).to(dtype)
    q = torch.randn(3, 8, 64).to(dtype)
    pages, num_pages = page_lists()
    scores = score(q, BOUND, summaries, pages, num_pages, 1.0)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, score(q.float(), BOUND, summaries.float(), pages, num_pages, 1.0))
