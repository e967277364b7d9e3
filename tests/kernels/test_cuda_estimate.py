"""The CUDA C++ estimate and page_shares equal their references on ragged and adversarial pages."""

from __future__ import annotations

import pytest
import torch
from subcentroid_cases import KEYS, Geometry, make_case

from rheo_kernels import reference
from rheo_kernels.cuda import estimate as module
from rheo_kernels.cuda.compile import compile_cubin
from rheo_kernels.cuda.estimate import estimate, page_shares
from rheo_kernels.types import Estimates
from rheo_kernels.types.estimates import PAGES_PER_BLOCK

pytestmark = pytest.mark.usefixtures("cuda_kernels")

GEOMETRIES = [
    Geometry(4, 128, 32, 4, torch.bfloat16),
    Geometry(4, 128, 16, 2, torch.bfloat16),
    Geometry(7, 64, 32, 4, torch.bfloat16),
    Geometry(1, 64, 16, 4, torch.float16),
    Geometry(8, 128, 32, 8, torch.float16),
    Geometry(16, 64, 32, 2, torch.bfloat16),
    Geometry(16, 128, 64, 8, torch.bfloat16),
    Geometry(2, 128, 64, 4, torch.float16),
    Geometry(7, 64, 16, 8, torch.bfloat16),
    Geometry(12, 256, 16, 4, torch.bfloat16),
    Geometry(2, 256, 32, 4, torch.bfloat16, heads=1),
]
"""Pages of 2, 4, 8 and 16 rows, centres of 4 and 8 bits, groups that fill their tiles and that do not."""


def lengths(geometry: Geometry) -> list[int]:
    """One token, padding, the end inside a row, whole blocks of pages, one token more."""
    size = geometry.page_size
    return [1, 0, 2 * size + 5, PAGES_PER_BLOCK * size, 19 * size + 1, 9 * size - 1]


@pytest.mark.parametrize(
    ("geometry", "kind"),
    [
        pytest.param(geometry, KEYS[place % len(KEYS)], id=f"{geometry}-{KEYS[place % len(KEYS)]}")
        for turn, geometry in enumerate(GEOMETRIES)
        for place in (turn, turn + 2)
    ],
)
@pytest.mark.parametrize("long_lengths", [False, True])
def test_equals_reference(geometry: Geometry, kind: str, long_lengths: bool, rng: torch.Generator) -> None:
    case = make_case(geometry, kind, rng, lengths(geometry))
    seq_lens = case.seq_lens.long() if long_lengths else case.seq_lens
    expected = reference.estimate(case.q, case.summaries, case.safe, seq_lens, case.scale, case.layout)
    out = Estimates.allocate(*expected.shape, rng.device)
    for field in out:
        field.fill_(torch.nan)
    found = estimate(case.q, case.summaries, case.pages, seq_lens, case.scale, case.layout, out)
    assert found is out
    listed = expected > -torch.inf
    assert torch.equal(out.lse == -torch.inf, ~listed)
    tolerance = 2**-18 * expected[listed].abs().max().item() + 2e-5
    assert (out.lse - expected)[listed].abs().max() < tolerance
    spare = -expected.shape[2] % PAGES_PER_BLOCK
    padded = torch.nn.functional.pad(expected, (0, spare), value=-torch.inf)
    blocks = padded.unflatten(2, (-1, PAGES_PER_BLOCK)).logsumexp(-1)
    assert torch.equal(out.block_lse == -torch.inf, blocks == -torch.inf)
    within = blocks > -torch.inf
    assert (out.block_lse - blocks)[within].abs().max() < tolerance

    shares = reference.page_shares(out.lse, geometry.heads)
    wide = torch.full((*shares.shape[:2], shares.shape[2] + 3), torch.nan, device=rng.device)
    page_shares(out, seq_lens, geometry.page_size, wide[..., :-3])
    assert wide[..., -3:].isnan().all()
    assert torch.equal(wide[..., :-3] == -torch.inf, shares == -torch.inf)
    within = shares > -torch.inf
    assert (wide[..., :-3] - shares)[within].abs().max() < 1e-5
