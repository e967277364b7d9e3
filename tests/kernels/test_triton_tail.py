"""The tail equals its reference, merges as one more partial, and is nothing where nothing is left out."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from subcentroid_cases import CASES, LENGTHS, Case, Geometry, make_case
from triton_cases import merged, relative_error

from rheo_kernels import reference
from rheo_kernels.types import Partials


def selection(case: Case, heads: int, keep: float, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random selections of a share of every page list, ``[B, H, S]``, and their lengths; then columns of rubbish."""
    size = case.layout.page_size
    num_pages = ((case.seq_lens + size - 1) // size).tolist()
    width = max(max(num_pages), 1) + 2
    indices = torch.full((len(num_pages), heads, width), 2**30, dtype=torch.int32, device=rng.device)
    counts = torch.zeros((len(num_pages), heads), dtype=torch.int32, device=rng.device)
    for row, pages in enumerate(num_pages):
        count = -int(-keep * pages // 1)
        for head in range(heads):
            order = torch.randperm(pages, generator=rng, device=rng.device)[:count]
            indices[row, head, :count] = order.to(torch.int32)
        counts[row] = count
    return indices, counts


def exclude(lse: torch.Tensor, indices: torch.Tensor, counts: torch.Tensor) -> None:
    """Take the estimates of selected pages away, as `select_resolve` does."""
    heads = indices.shape[1]
    for row, head in product(range(len(lse)), range(heads)):
        chosen = indices[row, head, : counts[row, head]].long()
        lse[row].unflatten(0, (heads, -1))[head, :, chosen] = -torch.inf


@pytest.mark.parametrize(("geometry", "kind"), CASES)
def test_tail_equals_reference(geometry: Geometry, kind: str, rng: torch.Generator) -> None:
    from rheo_kernels.triton.tail import tail

    case = make_case(geometry, kind, rng)
    lse = reference.estimate(
        case.q.double(), case.summaries, case.safe, case.seq_lens, case.scale, case.layout
    )
    indices, counts = selection(case, geometry.heads, 0.3, rng)
    expected, expected_lse = reference.tail(
        lse.double(), indices, counts, case.summaries, case.safe, case.layout
    )
    exclude(lse, indices, counts)
    out, out_lse = merged(tail(lse, case.summaries, case.pages, case.layout), len(LENGTHS))
    empty = expected_lse == -torch.inf
    assert torch.equal(out_lse == -torch.inf, empty)
    assert not out[empty].any()
    assert relative_error(out[~empty], expected[~empty]) < 4e-3
    assert (out_lse - expected_lse)[~empty].abs().max() < 4e-3 + 1e-6 * expected_lse[~empty].abs().max()


def test_nothing_left_out_leaves_attention_as_it_was(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels
    from rheo_kernels.triton.tail import tail

    geometry = Geometry(4, 64, 16, 2, torch.float32)
    case = make_case(geometry, "normal", rng)
    lse = reference.estimate(
        case.q.double(), case.summaries, case.safe, case.seq_lens, case.scale, case.layout
    )
    exclude(lse, *selection(case, geometry.heads, 1.0, rng))
    assert (lse == -torch.inf).all()
    nothing = tail(lse, case.summaries, case.pages, case.layout)
    assert (nothing.lse == -torch.inf).all()
    pairs = len(LENGTHS) * geometry.heads
    parts = Partials.allocate(pairs, geometry.group, geometry.dim, 3, rng.device)
    for field in parts:
        field.copy_(torch.randn(field.shape, generator=rng, device=rng.device))
    alone, _ = merged(parts, len(LENGTHS))
    together = torch.empty_like(alone)
    kernels.merge(parts, nothing, together)
    assert torch.equal(together, alone)


def test_splits_add_up(rng: torch.Generator) -> None:
    from rheo_kernels.triton.tail import tail

    geometry = Geometry(7, 64, 16, 4, torch.float32, heads=1)
    case = make_case(geometry, "normal", rng, [16 * 200 + 5, 9])
    lse = reference.estimate(
        case.q.double(), case.summaries, case.safe, case.seq_lens, case.scale, case.layout
    )
    whole = None
    for splits in (1, 3, 5):
        parts = Partials.allocate(2, geometry.group, geometry.dim, splits, rng.device)
        out, out_lse = merged(tail(lse, case.summaries, case.pages, case.layout, parts), 2)
        if whole is None:
            whole = out, out_lse
        assert relative_error(out, whole[0]) < 2e-3
        assert torch.allclose(out_lse, whole[1], atol=2e-3)
