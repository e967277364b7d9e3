"""A budget table's rows: exact for any settings, within what is reserved, found again, replaced only when unused."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import torch
from hypothesis import given

from rheo_sglang.budget import BUDGETS, BudgetSettings, BudgetTable
from rheo_sglang.budget.rows import KEPT, SettingRows
from rheo_sglang.budget.share import share_of

MOST_PAGES, PAGE_SIZE = 700, 16
ratios = st.sampled_from([0.04, 0.1, 1 / 3, 0.1 + 0.2, 1.0]) | st.floats(1e-6, 1)
fractions = ratios.map(lambda ratio: Fraction(repr(ratio)))


@st.composite
def settings(draw: st.DrawFn) -> BudgetSettings:
    least = draw(st.integers(1, 80))
    most = draw(st.none() | st.integers(least, 400))
    return BudgetSettings(
        draw(fractions), least, most, draw(st.floats(0, 1, width=32)), draw(st.just(Fraction(0)) | fractions)
    )


def plain(one: BudgetSettings, pages: int, forced: int, dense_pages: int) -> tuple[int, int]:
    """Cap and limit of a request with the rule ``fixed``, by the definition."""
    if pages <= dense_pages:
        return pages, pages
    cap = max(math.ceil(one.ratio * pages), one.least)
    if one.most is not None:
        cap = min(cap, one.most)
    cap = max(cap, forced)
    return min(cap, pages), min(max(cap, math.ceil(one.limit_ratio * pages)), pages)


@given(
    server=settings(),
    largest=settings(),
    own=st.lists(settings(), min_size=1, max_size=4),
    forced=st.integers(1, 9),
    dense_tokens=st.integers(0, 1000),
    factor=st.sampled_from([1.0, 0.75, 0.5]) | st.floats(0.01, 1),
)
def test_each_row_is_exact_for_every_length_within_what_is_reserved(
    server: BudgetSettings,
    largest: BudgetSettings,
    own: list[BudgetSettings],
    forced: int,
    dense_tokens: int,
    factor: float,
) -> None:
    count = len(own)
    table = BudgetTable(
        BUDGETS["fixed"], MOST_PAGES, PAGE_SIZE, server, largest, forced, dense_tokens, requests=count + 1
    )
    dense_pages = -(-dense_tokens // PAGE_SIZE)
    lengths = range(MOST_PAGES + 1)
    reserved = [
        max(plain(reserve, pages, forced, dense_pages)[1] for reserve in (server, largest))
        for pages in lengths
    ]
    assert table.reads_scores == (max(server.floor, largest.floor) > 0)
    table.assign(range(1, count + 1), own)
    table.shrink(factor)
    table.settle()
    tensors = table.tensors
    widths = [table.width(pages) for pages in lengths]
    for request, one in enumerate([server, *own]):
        row = int(tensors.setting_of[request])
        assert float(tensors.floors[row]) == one.floor
        caps, limits = tensors.caps[row].tolist(), tensors.limits[row].tolist()
        for pages in lengths:
            bounds = [min(bound, reserved[pages]) for bound in plain(one, pages, forced, dense_pages)]
            if pages > dense_pages:
                bounds = [max(math.floor(bound * factor), min(bound, forced + 4)) for bound in bounds]
            assert [caps[pages], limits[pages]] == bounds
            assert caps[pages] <= limits[pages] <= widths[pages]
        for pages in (1, MOST_PAGES // 2, MOST_PAGES):
            assert table.bounds_of(pages, factor, one) == (caps[pages], limits[pages]), (
                "admission predicts the same"
            )


@given(ratio=fractions, pages=st.lists(st.integers(0, 2**22), max_size=20))
def test_a_share_is_rounded_up_whatever_its_digits(ratio: Fraction, pages: list[int]) -> None:
    found = share_of(torch.tensor(pages, dtype=torch.int64), ratio)
    assert found.dtype == torch.int64
    assert found.tolist() == [math.ceil(ratio * count) for count in pages]


distinct = [BudgetSettings(Fraction(1, number)) for number in range(1, 40)]
steps = st.lists(st.dictionaries(st.integers(0, 11), st.sampled_from([None, *distinct])), max_size=30)


@given(steps=steps)
def test_rows_are_bounded_and_always_those_of_the_request(
    steps: list[dict[int, BudgetSettings | None]],
) -> None:
    """What is on the device, written as the changes say, is what every request asked for last."""
    requests = 12
    server = distinct[0]
    rows = SettingRows(server, requests)
    written = {0: server}
    setting_of = dict.fromkeys(range(requests), 0)
    asked: dict[int, BudgetSettings | None] = dict.fromkeys(range(requests))
    for step in steps:
        asked |= step
        changes = rows.assign(list(step), list(step.values()))
        written |= changes.added
        setting_of |= changes.setting_of
        assert 0 not in changes.added, "the server's row is never replaced"
        assert len(written) <= max(requests, KEPT) + 1
        assert sorted(written) == list(range(len(written))), "rows are taken from the first on"
        for request, own in asked.items():
            assert written[setting_of[request]] == (own or server)
        assert rows.assign(list(step), list(step.values())) == ({}, {}), "nothing changed"


def test_settings_that_come_back_find_their_row() -> None:
    rows = SettingRows(distinct[0], 2)
    rows.assign([0], [distinct[1]])
    assert rows.assign([0], [None]) == ({}, {0: 0})
    assert rows.assign([1], [distinct[1]]) == ({}, {1: 1})
    assert rows.assign([1], [distinct[0]]) == ({}, {1: 0}), "the server's settings, written out"


def test_the_row_least_recently_used_is_replaced_once_no_request_has_it() -> None:
    rows = SettingRows(distinct[0], 2)
    rows.assign([0], [distinct[1]])
    for one in distinct[2 : KEPT + 1]:
        rows.assign([1], [one])
    assert rows.assign([1], [distinct[20]]).added == {2: distinct[20]}, "0 still has row 1"
    rows.assign([0], [None])
    assert rows.assign([0], [distinct[21]]).added == {3: distinct[21]}, "row 1 was used after it"
