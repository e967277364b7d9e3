"""A summary made from a page's block is the reference's, and does not depend on when it was made before."""

from __future__ import annotations

import pytest
import torch
from subcentroid_cases import CASES, Geometry, make_case

from rheo_kernels import reference


def blocks_of(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``[H, X, 2, D * P]``: K token-inner, V row-major."""
    return torch.stack([keys.transpose(2, 3).flatten(2), values.flatten(2)], 2)


@pytest.mark.parametrize(("geometry", "kind"), CASES)
def test_summary_equals_reference(geometry: Geometry, kind: str, rng: torch.Generator) -> None:
    from rheo_kernels.triton import summarise_subcentroids

    case = make_case(geometry, kind, rng, [3 * geometry.page_size])
    layout, size = geometry.layout, geometry.page_size
    listed = torch.tensor([*case.pages[0, :3].tolist(), 0], dtype=torch.int32, device=rng.device)
    counts = torch.tensor([size, 1, size - 3, 5], device=rng.device)
    keys, values = case.keys[:, listed.long()], case.values[:, listed.long()]
    index = torch.tensor([[3, 0, 2, 1], [1, 0, -1, 2]], dtype=torch.int32, device=rng.device)
    blocks = torch.full((2, 4, 2, size * geometry.dim), torch.nan, dtype=geometry.dtype, device=rng.device)
    written = index >= 0
    written[:, 3] = False
    for head, entry in written.nonzero().tolist():
        blocks[head, index[head, entry]] = blocks_of(keys, values)[head, entry]
    summaries = torch.full_like(case.summaries, 77)
    summarise_subcentroids(blocks, index, listed, counts, summaries, layout)
    expected = reference.summarise_subcentroids(keys, values, counts.expand(2, -1), layout)
    for head, entry in written.nonzero().tolist():
        found = summaries[head, listed[entry]]
        same = found == expected[head, entry]
        assert same.float().mean() > 0.97
        ours = reference.decode_subcentroids(found, layout)
        theirs = reference.decode_subcentroids(expected[head, entry], layout)
        near = (ours.rows - theirs.rows).abs() <= 2.01 * theirs.steps
        assert near.float().mean() > 0.99, "but where a centre lies half-way between two steps"
        summaries[head, listed[entry]] = 77
    assert (summaries == 77).all()


def test_a_page_folded_token_by_token_is_as_if_folded_at_once(rng: torch.Generator) -> None:
    from rheo_kernels.triton import summarise_subcentroids

    geometry = Geometry(2, 64, 16, 2, torch.bfloat16)
    case = make_case(geometry, "offset", rng, [16])
    page = case.pages[0, :1].contiguous()
    blocks = blocks_of(case.keys, case.values)[:, page.long()].contiguous()
    index = torch.zeros((2, 1), dtype=torch.int32, device=rng.device)
    one_by_one, at_once = torch.zeros_like(case.summaries), torch.zeros_like(case.summaries)
    for count in (*range(1, 17, 5), 16):
        tokens = torch.tensor([count], device=rng.device)
        summarise_subcentroids(blocks, index, page, tokens, one_by_one, geometry.layout)
    summarise_subcentroids(blocks, index, page, tokens, at_once, geometry.layout)
    assert at_once.any()
    assert torch.equal(one_by_one, at_once)
