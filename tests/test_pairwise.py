"""combinations: every combination is there, every pair of values runs without --full, and few run at all."""

from __future__ import annotations

import itertools

from pairwise import combinations


def test_every_pair_of_values_is_in_a_combination_that_always_runs() -> None:
    axes = [[16, 32, 64], ["bound", "mean"], [1, 2], ["lru", "lfu", "importance"], [False, True]]
    cases = combinations(*axes)
    assert [case.values for case in cases] == list(itertools.product(*axes))
    always = [case.values for case in cases if not case.marks]
    for one, other in itertools.combinations(range(len(axes)), 2):
        seen = {(values[one], values[other]) for values in always}
        assert seen == set(itertools.product(axes[one], axes[other]))
    assert len(always) < len(cases) / 5
