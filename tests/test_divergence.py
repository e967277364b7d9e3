"""Forced decoding keeps the unforced model's log-probabilities; divergences are those of the whole distributions."""

from __future__ import annotations

import math

import pytest
import torch

from rheo_sglang.evaluation.divergence import Steps, compare, interval, step_divergence
from rheo_sglang.evaluation.forcing import raise_token, recover
from rheo_sglang.evaluation.texts import KINDS, passage

VOCABULARY, SPARE_TOKEN = 500, 499


def draw_logits(seed: int, spread: float) -> torch.Tensor:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread
    logits[SPARE_TOKEN] = -40.0
    return logits


@pytest.mark.parametrize("spread", [0.5, 4.0, 12.0])
@pytest.mark.parametrize("wanted", ["best", "worst", "any"])
def test_forcing_takes_the_wanted_token_and_loses_no_probability(spread: float, wanted: str) -> None:
    for seed in range(20):
        logits = draw_logits(seed, spread)
        order = logits[:SPARE_TOKEN].argsort()
        token = int({"best": order[-1], "worst": order[0], "any": order[seed]}[wanted])
        seen = logits.clone()
        raise_token(seen, token, SPARE_TOKEN)
        assert int(seen.argmax()) == token
        reported = dict(enumerate(seen.log_softmax(0).tolist()))
        found = recover(reported, token, SPARE_TOKEN)
        expected = logits.log_softmax(0).tolist()
        assert found.keys() == set(range(SPARE_TOKEN))
        for index, value in found.items():
            assert value == pytest.approx(expected[index], abs=2e-5)


def test_divergence_of_the_most_probable_tokens_is_below_and_near_the_whole_one() -> None:
    for seed in range(20):
        one, two = (draw_logits(seed * 2 + i, 3.0).log_softmax(0) for i in range(2))
        whole = float((one.exp() * (one - two)).sum())
        tops = [
            dict(zip(x.topk(200).indices.tolist(), x.topk(200).values.tolist(), strict=True))
            for x in (one, two)
        ]
        assert step_divergence(*tops) <= whole + 1e-5
        everything = [dict(enumerate(x.tolist())) for x in (one, two)]
        assert step_divergence(*everything) == pytest.approx(whole, abs=1e-4)


def test_equal_distributions_diverge_by_nothing() -> None:
    steps = [dict(enumerate(draw_logits(seed, 2.0).log_softmax(0).tolist())) for seed in range(3)]
    found = compare(Steps("a", steps, [1, 2, 3]), Steps("a", steps, [1, 2, 3]))
    assert found.kl == pytest.approx(0.0, abs=1e-6)
    assert (found.same_top, found.loss) == (1.0, found.dense_loss)


def test_steps_of_other_text_are_refused_and_survive_json() -> None:
    steps = Steps("a", [{1: -0.5, 2: -1.0}], [1])
    assert Steps.from_json(steps.to_json()) == steps
    with pytest.raises(ValueError, match="other text"):
        compare(steps, Steps("b", steps.distributions, [1]))


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn((2000, 16), generator=generator)
    covered = [abs(float(row.mean())) <= interval(row.tolist()) for row in draws]
    assert 0.90 < sum(covered) / len(covered) < 0.97
    assert math.isnan(interval([1.0]))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_text_is_long_enough_drawn_by_seed_and_the_same_again(kind: str) -> None:
    text = passage(kind, 200_000, 1)
    assert len(text) >= 200_000
    assert text == passage(kind, 200_000, 1)
    assert text[:2000] != passage(kind, 200_000, 2)[:2000]
