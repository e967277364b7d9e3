"""Decode variants serve every length, and a server that selects everything skips selection at each of them."""

from __future__ import annotations

from typing import Any

import pytest

from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.variant import Variant, make_variants, pick_variant


def variants(context_len: int, page_size: int = 32, **values: Any) -> list[Variant]:
    return make_variants(RheoConfig(**values).budget_table(page_size, -(-context_len // page_size)))


@pytest.mark.parametrize("context_len", [100, 8192, 131072, 10**6])
def test_a_server_that_selects_all_skips_selection_at_every_length_in_the_narrowest_shape(
    context_len: int,
) -> None:
    found = variants(context_len, budget_ratio=1.0)
    most = -(-context_len // 32)
    for pages in {1, min(200, most), most // 2 + 1, most}:
        variant = pick_variant(found, pages, dense=True)
        assert variant.dense
        assert variant.columns < max(4 * pages, 257)


@pytest.mark.parametrize("context_len", [100, 8192, 131072, 10**6])
def test_pages_without_frames_are_admitted_by_a_step_that_selects_all(context_len: int) -> None:
    found = variants(context_len, budget_ratio=1.0)
    for pages in (1, -(-context_len // 32)):
        variant = pick_variant(found, pages, dense=False)
        assert variant.width == variant.columns >= pages


@pytest.mark.parametrize(("page_size", "threshold"), [(16, 4096), (32, 4096), (64, 100), (16, 20_000)])
def test_a_budget_skips_selection_up_to_its_threshold_only(page_size: int, threshold: int) -> None:
    found = variants(131072, page_size, budget_ratio=0.1, dense_threshold=threshold)
    last = -(-threshold // page_size)
    assert pick_variant(found, last, dense=True).dense
    assert not pick_variant(found, last + 1, dense=True).dense


def test_a_threshold_of_nothing_selects_even_all_pages() -> None:
    assert not any(variant.dense for variant in variants(131072, dense_threshold=0))
