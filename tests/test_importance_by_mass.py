"""The study of importance by shares: its signals order pages of one step as ranks do, and lie where worths do."""

from __future__ import annotations

import pytest
import torch

from studies.importance_by_mass import SIGNALS, ShareAverage

HEADS, PAGES = 2, 7
LISTED, COUNT = torch.arange(1, PAGES, dtype=torch.int32)[None], torch.tensor([5], dtype=torch.int32)


def averaged(signal: str, steps: list[torch.Tensor], alpha: float) -> torch.Tensor:
    averages = torch.zeros(1, HEADS, PAGES)
    for scores in steps:
        ShareAverage(averages, signal).update(0, scores, LISTED, COUNT, alpha, None)
    return averages[0]


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_signal_orders_the_pages_of_one_step_as_their_scores(signal: str) -> None:
    scores = torch.randn(1, HEADS, PAGES - 1, generator=torch.Generator().manual_seed(1))
    found = averaged(signal, [scores], 1.0)[:, 1:6]
    assert torch.equal(found.argsort(1), scores[0, :, :5].argsort(1))
    assert ((found > 0) & (found <= 1)).all()


@pytest.mark.parametrize("signal", SIGNALS)
def test_pages_past_a_requests_last_and_a_constant_in_its_scores_change_nothing(signal: str) -> None:
    scores = torch.randn(1, HEADS, PAGES - 1, generator=torch.Generator().manual_seed(2))
    other = scores + 3.0
    other[:, :, 5:] = 50.0
    expected = averaged(signal, [scores], 0.3)
    torch.testing.assert_close(averaged(signal, [other], 0.3), expected)
    assert not expected[:, [0, 6]].any()


def test_an_average_of_shares_is_what_steps_gave_a_page() -> None:
    first, second = (torch.rand(1, HEADS, PAGES - 1) for _ in range(2))
    shares = [scores[:, :, :5].softmax(2)[0] for scores in (first, second)]
    found = averaged("share", [first, second], 0.25)[:, 1:6]
    torch.testing.assert_close(found, 0.75 * 0.25 * shares[0] + 0.25 * shares[1])
