"""The offline study of corrections: what a prompt's last tokens tell, and how it enters ranks and tails."""

from __future__ import annotations

import pytest
import torch

from budgets.corrections import STEP, Learned, Way, learn, select, tail, tail_bias
from budgets.steps import LayerSteps, page_data
from selection.layer import Layer

HEADS, DIM, PAGE, PAGES, BEHIND = 2, 32, 16, 12, 5
MASSES = Way("masses", limit=100.0)


def steps_of(count: int, group: int, seed: int = 0) -> LayerSteps:
    """Steps of one layer; some keys stand out of their rows."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(HEADS, PAGES * PAGE + BEHIND + count, DIM, generator=draw)
    keys[:, ::7] *= 3
    values = torch.randn(keys.shape, generator=draw)
    query = torch.randn(HEADS, count, group, DIM, generator=draw)
    layer = Layer(query, keys, values, PAGES * PAGE, DIM**-0.5)
    return LayerSteps(layer, page_data(layer.keys, layer.values, PAGE, 4), PAGE)


def test_steps_attend_what_lies_between_the_prompt_and_them() -> None:
    draw = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, HEADS, 64 + BEHIND + 3, DIM, generator=draw)
    query = torch.randn(HEADS, 3, 2, DIM, generator=draw)
    layer = Layer(query, keys, values, 64, 0.2)
    for step in range(3):
        seen = 64 + BEHIND + step + 1
        weights = torch.einsum("hgd,htd->hgt", query[:, step] * 0.2, keys[:, :seen]).softmax(-1)
        expected = torch.einsum("hgt,htd->hgd", weights, values[:, :seen])
        torch.testing.assert_close(layer.dense[:, step], expected, rtol=1e-4, atol=1e-5)


def test_a_correction_makes_the_telling_query_s_estimate_right() -> None:
    steps = steps_of(1, 1)
    learned = learn(steps)
    whole = torch.ones(HEADS, 1, PAGES, dtype=torch.bool)
    true = steps.layer.weights.unflatten(-1, (PAGES, -1)).sum(-1).log()
    assert (steps.lse - true).abs().max() > 0.3
    assert (tail(steps, MASSES, learned) - true).abs().max() <= STEP / 2 + 1e-4
    torch.testing.assert_close(tail(steps, Way("oracle"), learned), true)
    assert tail_bias(steps, ~whole, true).abs().max() < 1e-4


def test_shares_differ_from_attention_by_one_number_for_each_head() -> None:
    """Which ranks do not see, and tails do."""
    learned = learn(steps_of(1, 1))
    apart = learned.estimated - learned.mass
    torch.testing.assert_close(apart, apart[:, :1].expand_as(apart), rtol=0, atol=1e-4)
    assert apart.abs().min() > 0.05


@pytest.mark.parametrize("by", ["shares", "masses", "centred", "level"])
def test_where_everything_is_selected_no_correction_matters(by: str) -> None:
    steps = steps_of(3, 2)
    chosen = select(steps, Way(by), learn(steps), 1.0)
    assert chosen.all()
    outcome = steps.attend(chosen, tail(steps, Way(by), learn(steps)))
    torch.testing.assert_close(outcome.out, steps.layer.dense, rtol=1e-4, atol=1e-5)


def test_ranks_follow_what_the_telling_query_attended() -> None:
    steps = steps_of(1, 1)
    learned = learn(steps)
    exact = Way("shares", limit=100.0)
    assert (select(steps, Way(), learned, 0.5) != select(steps, Way("oracle"), learned, 0.5)).any()
    assert (select(steps, exact, learned, 0.5) == select(steps, Way("oracle"), learned, 0.5)).all()


def test_corrections_are_limited_then_shrunk_and_left_out_of_small_pages() -> None:
    true = torch.tensor([[-1.0, -9.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0]])
    learned = Learned(true, torch.full((1, 8), -4.0), torch.full((1, 8), -5.0))
    assert Way("shares", factor=0.5, limit=2.0).of(learned)[0].tolist() == [1, -1, 0.5, 0, -0.5, -1, -1, -1]
    assert Way("masses", limit=9.0, largest=0.25).of(learned)[0].tolist() == [4, 0, 2, 0, 0, 0, 0, 0]
    assert Way("centred", limit=9.0).of(learned)[0].median() == 0
