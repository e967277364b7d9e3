"""The summary that `write` makes of a page is the reference's, and does not depend on when it was made before."""

from __future__ import annotations

import pytest
import torch
from subcentroid_cases import CASES, Case, Geometry, make_case
from triton_cases import pinned

from rheo_kernels import reference
from rheo_sglang.selection import SUMMARIES


def write(case: Case, geometry: Geometry, counts: dict[int, int], summaries: torch.Tensor) -> None:
    """Write the first ``counts[page]`` tokens of pages, whose summaries go into ``[H, N, W]``."""
    from rheo_kernels import triton as kernels

    size, device = geometry.page_size, case.keys.device
    k, v = (
        torch.cat([part[:, page, :count].transpose(0, 1) for page, count in counts.items()]).contiguous()
        for part in (case.keys, case.values)
    )
    slots = torch.cat([page * size + torch.arange(count, device=device) for page, count in counts.items()])
    shape = (case.keys.shape[1], geometry.heads, 2, geometry.dim * size)
    host = torch.full(shape, torch.nan, dtype=geometry.dtype, device=device)
    host = pinned(host)
    summary = SUMMARIES[f"subcentroids{geometry.row_tokens}"]()
    kernels.write(k, v, slots, host, summary, summaries[:, :, None], size)
    if device.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize(("geometry", "kind"), CASES)
def test_summary_equals_reference(geometry: Geometry, kind: str, rng: torch.Generator) -> None:
    if geometry.dim & (geometry.dim - 1):
        pytest.skip("servers refuse sub-centroids of head sizes that are no power of two")
    case = make_case(geometry, kind, rng, [3 * geometry.page_size])
    layout, size = geometry.layout, geometry.page_size
    listed = case.pages[0, :3].long()
    counts = torch.tensor([size, 1, size - 3], device=rng.device)
    summaries = torch.full_like(case.summaries, 77)
    write(case, geometry, dict(zip(listed.tolist(), counts.tolist(), strict=True)), summaries)
    keys, values = case.keys[:, listed], case.values[:, listed]
    expected = reference.summarise_subcentroids(keys, values, counts.expand(2, -1), layout)
    found = summaries[:, listed]
    for head in range(geometry.heads):
        for entry in range(3):
            same = found[head, entry] == expected[head, entry]
            assert same.float().mean() > 0.97
            ours = reference.decode_subcentroids(found[head, entry], layout)
            theirs = reference.decode_subcentroids(expected[head, entry], layout)
            near = (ours.rows - theirs.rows).abs() <= 2.01 * theirs.steps
            assert near.float().mean() > 0.99, "but where a centre lies half-way between two steps"
    summaries[:, listed] = 77
    assert (summaries == 77).all()


def test_a_page_written_again_and_again_is_as_if_written_at_once(rng: torch.Generator) -> None:
    geometry = Geometry(2, 64, 16, 2, torch.bfloat16)
    case = make_case(geometry, "offset", rng, [16])
    page = int(case.pages[0, 0])
    again, at_once = torch.zeros_like(case.summaries), torch.zeros_like(case.summaries)
    for count in (*range(1, 17, 5), 16):
        write(case, geometry, {page: count}, again)
    write(case, geometry, {page: 16}, at_once)
    assert at_once.any()
    assert torch.equal(again, at_once)
