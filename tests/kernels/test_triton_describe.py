"""describe says of a batch what `build_decode_batch` says, and marks what the step touches."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from triton_cases import permutation

from rheo_kernels.types import DecodeBatch
from rheo_sglang.budget import BudgetSettings
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.batch import build_decode_batch

ROWS, PAGES, LAYERS, HEADS = 6, 90, 3, 2


@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize(("ratio", "margin"), [(0.125, None), (0.1, None), (0.1, 0.25)])
def test_describe_equals_the_reference(
    page_size: int, ratio: float, margin: float | None, rng: torch.Generator
) -> None:
    from rheo_kernels import triton as kernels

    device = rng.device
    config = RheoConfig(
        budget_ratio=ratio, budget_min_pages=2, dense_threshold=3 * page_size, conservative_margin=margin
    )
    budget = config.budget_table(page_size, 12, device, requests=ROWS)
    own = BudgetSettings(Fraction(ratio) / 3, least=1, floor=0.7, margin=2.0)
    budget.assign([5, 0, 1], [own, BudgetSettings(Fraction(ratio), least=1, most=1, floor=0.2), own])
    if margin is not None:
        budget.tensors.margins.copy_(torch.tensor([0.3, 2.0, 0.2, 0.25, torch.nan, 1.0]))
    pages = (permutation(PAGES - 1, rng)[: ROWS * 12] + 1).view(ROWS, 12).to(torch.int32)
    slots = pages[:, :, None] * page_size + torch.arange(page_size, device=device, dtype=torch.int32)
    tokens = slots.flatten(1).contiguous()
    rows = torch.tensor([4, 0, 3, 1, 5, 2], device=device)
    lengths = torch.tensor(
        [12 * page_size, 1, 3 * page_size, 5 * page_size + 1, 11 * page_size, 7], device=device
    )
    live, columns = 5, 12
    expected = build_decode_batch(tokens, rows[:live], lengths[:live], columns * page_size, page_size, budget)
    out = DecodeBatch.allocate(len(rows), columns, device)
    for field in out:
        field.fill_(-5)
    step = torch.tensor(17, dtype=torch.int32, device=device)
    last_active = torch.zeros(PAGES, dtype=torch.int32, device=device)
    described = torch.zeros(PAGES, dtype=torch.bool, device=device)
    unsaved = torch.zeros((LAYERS, PAGES), dtype=torch.bool, device=device)
    kernels.describe(
        tokens, rows, lengths, live, page_size, budget.tensors, step, last_active, described, unsaved, out
    )
    for name, mine, theirs in zip(DecodeBatch._fields[1:], out[1:], expected[1:], strict=True):
        assert mine.dtype == theirs.dtype, name
        assert torch.equal(mine[:live], theirs), name
    for field in out[1:]:
        assert field[live:].eq(0).all(), "a padded row"
    floors = {4: 0, 0: 0.2, 3: 0, 1: 0.7, 5: 0.7}
    if margin is not None:
        floors |= {5: 1}
    assert expected.rows.tolist() == list(floors)
    assert expected.floor.tolist() == pytest.approx(list(floors.values()))
    listed = set()
    for row, count in enumerate(expected.num_pages.tolist()):
        assert torch.equal(out.pages[row, :count], expected.pages[row, :count])
        listed |= set(out.pages[row, :count].tolist())
    assert set((last_active == 17).nonzero().squeeze(1).tolist()) - {0} == listed
    tails = set(expected.tail_pages.tolist())
    assert set(described.nonzero().squeeze(1).tolist()) == tails
    for layer in range(LAYERS):
        assert set(unsaved[layer].nonzero().squeeze(1).tolist()) == tails
