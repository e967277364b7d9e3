"""Estimates of pages, and their shares of attention, equal their references on ragged and adversarial pages."""

from __future__ import annotations

import importlib

import pytest
import torch
from subcentroid_cases import CASES, Geometry, make_case, some_corrections

from rheo_kernels import reference
from rheo_kernels.types import CORRECTION_STEP
from rheo_kernels.types.estimates import LEAST_SCORE


@pytest.mark.parametrize(("geometry", "kind"), CASES)
def test_estimate_equals_reference(geometry: Geometry, kind: str, rng: torch.Generator) -> None:
    from rheo_kernels.triton.estimate import estimate, log_shares

    case = make_case(geometry, kind, rng)
    expected = reference.estimate(
        case.q.double(), case.summaries, case.safe, case.seq_lens, case.scale, case.layout
    )
    found = estimate(case.q, case.summaries, case.pages, case.seq_lens, case.scale, case.layout)
    listed = torch.isfinite(expected)
    assert torch.equal(found.lse == -torch.inf, ~listed)
    tolerance = (
        2**-15 * expected[listed].abs().max().item() + 1e-4
    )  # noise is multiplied in two bfloat16 terms
    assert (found.lse - expected)[listed].abs().max() < tolerance
    totals = expected.logsumexp(-1)
    blocks = found.block_lse.logsumexp(-1)
    assert torch.equal(blocks == -torch.inf, totals == -torch.inf)
    finite = totals.isfinite()
    assert (blocks - totals)[finite].abs().max() < tolerance

    with_new = case.seq_lens + (case.seq_lens > 0)
    num_pages = (with_new + geometry.page_size - 1) // geometry.page_size
    scores = reference.log_shares(found.lse, num_pages, geometry.heads)
    out = torch.full_like(scores, torch.nan)
    log_shares(found, with_new, geometry.page_size, out)
    assert torch.equal(out == -torch.inf, scores == -torch.inf)
    assert (out.exp() - scores.exp()).abs().max() < 1e-5
    within = scores > 0.9 * LEAST_SCORE
    assert (out - scores)[within].abs().max() < 1e-3
    sums = out.exp().sum(-1)
    assert torch.allclose(sums, (case.seq_lens > 0).float()[:, None].expand_as(sums), atol=1e-4)


def test_corrections_are_added_to_scores_as_the_reference_adds_them(rng: torch.Generator) -> None:
    from rheo_kernels.triton.estimate import estimate, log_shares

    geometry = Geometry(4, 64, 16, 4, torch.float32)
    case = make_case(geometry, "normal", rng)
    found = estimate(case.q, case.summaries, case.pages, case.seq_lens, case.scale, case.layout)
    corrections = some_corrections(len(case.seq_lens), geometry.heads, case.pages.shape[1], rng)
    num_pages = (case.seq_lens + 15) // 16
    plain = reference.log_shares(found.lse, num_pages, geometry.heads)
    expected = reference.log_shares(found.lse, num_pages, geometry.heads, corrections)
    codes = corrections.codes[corrections.rows.long(), :, : plain.shape[2]]
    assert torch.allclose(expected.exp(), (plain + codes * CORRECTION_STEP).exp())
    out = log_shares(found, case.seq_lens, 16, torch.empty_like(expected), corrections)
    assert torch.equal(out == -torch.inf, expected == -torch.inf)
    within = plain > 0.9 * LEAST_SCORE
    assert (out - expected)[within].abs().max() < 1e-3


def test_a_list_of_many_blocks_is_normalised_as_a_whole(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("rheo_kernels.triton.estimate")
    monkeypatch.setattr(module, "PAGES_PER_SHARE", 16)
    case = make_case(Geometry(2, 64, 16, 8, torch.float32, heads=1), "normal", rng, [16 * 1100 - 3, 40])
    found = module.estimate(case.q, case.summaries, case.pages, case.seq_lens, case.scale, case.layout)
    assert found.block_lse.shape[2] > 16
    scores = reference.log_shares(found.lse, (case.seq_lens + 15) // 16, 1)
    out = module.log_shares(found, case.seq_lens, 16, torch.empty_like(scores))
    assert torch.allclose(out.exp(), scores.exp(), atol=1e-6)
