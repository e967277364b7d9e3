"""The CUDA C++ estimate and log_shares equal their references on ragged and adversarial pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from subcentroid_cases import KEYS, Geometry, make_case, some_corrections

from rheo_kernels import reference
from rheo_kernels.cuda import compile as compile_module
from rheo_kernels.cuda import estimate as module
from rheo_kernels.cuda.estimate import estimate, log_shares
from rheo_kernels.types import CORRECTION_STEP, Estimates, PrefixPairs
from rheo_kernels.types.estimates import LEAST_SCORE, PAGES_PER_BLOCK

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
    Geometry(3, 128, 32, 4, torch.bfloat16),
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
def test_equals_reference(geometry: Geometry, kind: str, rng: torch.Generator) -> None:
    case = make_case(geometry, kind, rng, lengths(geometry))
    seq_lens = case.seq_lens.long() if kind in ("normal", "huge") else case.seq_lens
    expected = reference.estimate(
        case.q.double(), case.summaries, case.safe, seq_lens, case.scale, case.layout
    )
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

    with_new = seq_lens + (seq_lens > 0)
    num_pages = (with_new + geometry.page_size - 1) // geometry.page_size
    scores = reference.log_shares(out.lse, num_pages, geometry.heads)
    wide = torch.full((*scores.shape[:2], scores.shape[2] + 3), torch.nan, device=rng.device)
    log_shares(out, with_new, geometry.page_size, wide[..., :-3])
    assert wide[..., -3:].isnan().all()
    assert torch.equal(wide[..., :-3] == -torch.inf, scores == -torch.inf)
    assert (wide[..., :-3].exp() - scores.exp()).abs().max() < 1e-5
    within = scores > 0.9 * LEAST_SCORE
    assert (wide[..., :-3] - scores)[within].abs().max() < 1e-3


@pytest.mark.parametrize(
    "geometry", [one for one in GEOMETRIES if one.group <= module.MOST_PAIRED_GROUP], ids=str
)
def test_pairs_change_nothing(geometry: Geometry, rng: torch.Generator) -> None:
    size = geometry.page_size
    counts = [19 * size + 1, 0, 19 * size + 1, 40 * size, 30 * size + 7, 9 * size - 1, 8 * size]
    case = make_case(geometry, "offset", rng, counts)
    pages = case.pages
    shared = {(0, 2): 2, (3, 4): 3, (5, 6): 1}
    partner = torch.full((len(counts),), -1, dtype=torch.int32, device=rng.device)
    units = torch.zeros_like(partner)
    for (one, other), number in shared.items():
        pages[other, : number * PAGES_PER_BLOCK] = pages[one, : number * PAGES_PER_BLOCK]
        partner[one], partner[other] = other, one
        units[one] = units[other] = number
    arguments = case.q, case.summaries, pages, case.seq_lens, case.scale, case.layout
    expected = estimate(*arguments)
    found = Estimates(*(torch.full_like(field, torch.nan) for field in expected))
    estimate(*arguments, found, PrefixPairs(partner, units))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_equals_the_triton_kernels(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    geometry = Geometry(4, 64, 32, 4, torch.bfloat16)
    case = make_case(geometry, "offset", rng, lengths(geometry))
    arguments = case.q, case.summaries, case.pages, case.seq_lens, case.scale, case.layout
    mine, theirs = estimate(*arguments), kernels.estimate(*arguments)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2**-14)
    out = torch.empty((len(case.seq_lens), geometry.heads, case.pages.shape[1]), device=rng.device)
    scores = log_shares(theirs, case.seq_lens, 32, out)
    expected = kernels.log_shares(theirs, case.seq_lens, 32, torch.empty_like(out))
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)


def test_corrections_are_added_to_scores(rng: torch.Generator) -> None:
    geometry = Geometry(4, 64, 32, 4, torch.bfloat16)
    case = make_case(geometry, "offset", rng, lengths(geometry))
    found = estimate(case.q, case.summaries, case.pages, case.seq_lens, case.scale, case.layout)
    corrections = some_corrections(len(case.seq_lens), geometry.heads, case.pages.shape[1], rng)
    out = torch.empty((len(case.seq_lens), geometry.heads, case.pages.shape[1]), device=rng.device)
    plain = log_shares(found, case.seq_lens, 32, out).clone()
    added = log_shares(found, case.seq_lens, 32, out, corrections) - plain
    listed = plain > -torch.inf
    expected = corrections.codes[corrections.rows.long(), :, : out.shape[2]] * CORRECTION_STEP
    assert torch.equal(out > -torch.inf, listed)
    assert (added - expected)[listed].abs().max() < 1e-4


def test_extreme_queries_give_finite_estimates(rng: torch.Generator) -> None:
    """Logits of thousands, of both signs, and queries beyond the range of float16."""
    geometry = Geometry(4, 64, 32, 4, torch.bfloat16)
    case = make_case(geometry, "huge", rng, lengths(geometry))
    q = case.q * 300
    q[:, ::4] *= 1e3
    expected = reference.estimate(
        q.double().clamp(-65504, 65504), case.summaries, case.safe, case.seq_lens, case.scale, case.layout
    )
    found = estimate(q, case.summaries, case.pages, case.seq_lens, case.scale, case.layout)
    listed = expected > -torch.inf
    assert found.lse[listed].isfinite().all()
    usual = listed & (torch.arange(listed.shape[1], device=rng.device) % 4 > 0)[:, None]
    torch.testing.assert_close(found.lse[usual], expected[usual], rtol=2**-7, atol=1.0)


def test_queries_and_lists_may_be_views(rng: torch.Generator) -> None:
    geometry = Geometry(2, 64, 32, 4, torch.float16)
    case = make_case(geometry, "normal", rng, lengths(geometry))
    batch, queries, dim = case.q.shape
    q = torch.full((batch, queries + 3, dim), torch.nan, dtype=case.q.dtype, device=rng.device)
    q[:, :queries] = case.q
    pages = torch.full((batch, case.pages.shape[1] + 5), 2**30, dtype=torch.int32, device=rng.device)
    pages[:, :-5] = case.pages
    arguments = case.summaries, case.pages, case.seq_lens, case.scale, case.layout
    expected = estimate(case.q, *arguments)
    found = estimate(q[:, :queries], case.summaries, pages[:, :-5], *arguments[2:])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_warp_takes_several_units(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry(1, 64, 16, 8, torch.bfloat16, heads=1)
    case = make_case(geometry, "normal", rng, [16 * 1100 - 3, 40])
    monkeypatch.setattr(module, "launch_blocks", lambda *_: 3)
    expected = reference.estimate(
        case.q.double(), case.summaries, case.safe, case.seq_lens, case.scale, case.layout
    )
    found = estimate(case.q, case.summaries, case.pages, case.seq_lens, case.scale, case.layout)
    torch.testing.assert_close(found.lse, expected, atol=2e-5, rtol=2**-18)
    scores = log_shares(found, case.seq_lens, 16, torch.empty_like(found.lse))
    shares = reference.log_shares(expected, (case.seq_lens + 15) // 16, 1)
    torch.testing.assert_close(scores, shares, atol=1e-3, rtol=1e-4)


def test_launch_blocks_cover_every_unit() -> None:
    for pairs in (1, 8, 64):
        for width in (1, 8, 9, 1000, 4096):
            units, blocks = -(-width // PAGES_PER_BLOCK), module.launch_blocks(pairs, width, 528)
            assert (blocks - 1) * module.WARPS < units <= blocks * module.WARPS * module.MOST_UNITS
    assert module.launch_blocks(8, 4096, 528) * 8 <= 528


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (Geometry(4, 128, 32, 4, torch.float32), "queries are torch.float32; allowed"),
        (Geometry(4, 96, 32, 4, torch.bfloat16), "head size 96; allowed"),
        (Geometry(4, 64, 64, 2, torch.bfloat16), "32 rows a page; allowed"),
        (Geometry(17, 64, 32, 4, torch.bfloat16), "17 query heads per KV head; allowed"),
    ],
    ids=str,
)
def test_what_it_does_not_serve_is_said(geometry: Geometry, message: str, rng: torch.Generator) -> None:
    reason = module.unsupported_shape(geometry.layout, geometry.group, geometry.dtype)
    assert reason is not None and reason.startswith(message)
    case = make_case(geometry, "normal", rng, [40])
    with pytest.raises(ValueError, match=message):
        estimate(case.q, case.summaries, case.pages, case.seq_lens, case.scale, case.layout)


def test_refuses_what_it_cannot_read(rng: torch.Generator) -> None:
    geometry = GEOMETRIES[0]
    case = make_case(geometry, "normal", rng, [40])
    rest = case.seq_lens, case.scale, case.layout
    with pytest.raises(ValueError, match=r"pages has dtype torch\.int64"):
        estimate(case.q, case.summaries, case.pages.long(), *rest)
    with pytest.raises(ValueError, match="allowed: pages of 716 bytes next to each other"):
        estimate(case.q, case.summaries[:, ::2], case.pages, *rest)


@pytest.mark.parametrize(
    ("source", "operands"),
    [
        (
            module.SOURCE,
            (
                *(
                    "a.q",
                    "a.seq_lens",
                    "a.partner",
                    "a.shared_units",
                    "pages[",
                    "load_centre(",
                    "load_tiles(",
                ),
                *("a.lse[", "a.block_lse["),
            ),
        ),
        (module.SHARES_SOURCE, ("a.lse[", "a.block_lse", "a.seq_lens", "out[")),
    ],
)
def test_what_the_kernel_before_may_write_is_read_after_the_wait_for_it(
    source: str, operands: tuple[str, ...]
) -> None:
    """The emulator runs one kernel after the other: only the order in the source shows a read that comes too early."""
    body = (Path(compile_module.__file__).parent / source).read_text().partition('extern "C" __global__')[2]
    wait = body.index("wait_for_last_kernel();")
    for operand in operands:
        assert body.index(operand) > wait
