"""Attention mass by page: against a plain softmax, and what selections cover of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from locality.mass import covered, page_masses, with_forced
from locality.statistics import retrieved_pages
from locality.trace import Trace, page_scores

STEPS, LAYERS, QUERY_HEADS, HEADS, DIM, TOKENS, PAGE_SIZE = 5, 2, 4, 2, 8, 45, 4


@pytest.fixture
def trace() -> Trace:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn((STEPS, LAYERS, QUERY_HEADS, DIM), generator=generator)
    keys = torch.randn((LAYERS, HEADS, TOKENS, DIM), generator=generator)
    return Trace(3 * queries, keys, [])


def test_page_masses_are_sums_of_the_softmax(trace: Trace) -> None:
    masses = page_masses(trace, PAGE_SIZE)
    for step, layer, head in [(0, 0, 0), (STEPS - 1, LAYERS - 1, HEADS - 1)]:
        tokens = TOKENS - STEPS + 1 + step
        group = trace.queries[step, layer].view(HEADS, -1, DIM)[head]
        weights = (group @ trace.keys[layer, head, :tokens].T * DIM**-0.5).softmax(1).mean(0)
        expected = [float(part.sum()) for part in weights.split(PAGE_SIZE)]
        assert masses[step, layer, head, : len(expected)].tolist() == pytest.approx(expected, abs=1e-6)
        assert masses[step, layer, head, len(expected) :].isneginf().all()


def test_whole_context_is_covered_and_the_oracle_covers_most(trace: Trace) -> None:
    masses = page_masses(trace, PAGE_SIZE).flatten(1, 2)
    drawn = masses.transpose(0, 1).numpy()
    shares = {}
    for kind, grouping in (("bound", "mean"), ("bound", "max"), ("mean", "mean")):
        scores, num_pages = page_scores(trace, PAGE_SIZE, kind, grouping)
        shares[kind, grouping] = scores.flatten(1, 2)
    for budget in (0.3, 0.6, 1.0):
        oracle, *others = (
            covered(drawn, with_forced(retrieved_pages(scores, num_pages, budget, 1, 1), num_pages, 1, 1))
            for scores in (masses, *shares.values())
        )
        assert all(0 < share <= oracle + 1e-6 for share in others)
    assert oracle == pytest.approx(1.0) and others == pytest.approx([1.0] * 3)


def test_forced_pages_are_the_first_and_the_last_that_exist() -> None:
    selected = with_forced(np.zeros((1, 2, 6), bool), torch.tensor([4, 5], dtype=torch.int32), 1, 2)
    assert np.flatnonzero(selected[0, 0]).tolist() == [0, 2, 3]
    assert np.flatnonzero(selected[0, 1]).tolist() == [0, 3, 4]
