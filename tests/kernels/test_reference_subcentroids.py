"""Sub-centroids keep to their bytes and their rounding; estimates do not exceed what they estimate; tails are means."""

from __future__ import annotations

import pytest
import torch
from subcentroid_cases import CASES, GEOMETRIES, Geometry, make_case

from rheo_kernels import reference
from rheo_kernels.reference.subcentroids import row_counts
from rheo_kernels.types.subcentroids import SubcentroidLayout, subcentroid_layout


@pytest.mark.parametrize(("page_size", "row_tokens", "most"), [(32, 4, 0.05), (16, 2, 0.08), (64, 8, 0.025)])
def test_a_summary_is_a_small_part_of_its_page(page_size: int, row_tokens: int, most: float) -> None:
    layout = subcentroid_layout(128, page_size, row_tokens)
    assert layout.width % 4 == 0
    assert layout.width <= most * 4 * page_size * 128


@pytest.mark.parametrize(("dim", "page_size", "row_tokens"), [(128, 32, 3), (128, 16, 16), (72, 32, 4)])
def test_an_impossible_layout_is_refused(dim: int, page_size: int, row_tokens: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        subcentroid_layout(dim, page_size, row_tokens)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_codes_lie_where_the_layout_says(geometry: Geometry, rng: torch.Generator) -> None:
    """A row differs from the others in dimensions d and d + D / 2: its code alone is 15 in one, 0 in the other."""
    layout, half = geometry.layout, geometry.dim // 2
    words = half // 4 // layout.columns
    for row, dim in ((0, 0), (1, 5), (layout.rows - 1, half - 1), (layout.rows // 2, half // 2 + 3)):
        keys = torch.zeros((geometry.page_size, geometry.dim), device=rng.device)
        first = row * layout.row_tokens
        keys[first : first + layout.row_tokens, dim] = 1.0
        keys[first : first + layout.row_tokens, dim + half] = -1.0
        counts = torch.tensor(geometry.page_size, device=rng.device)
        summary = reference.summarise_subcentroids(keys, keys, counts, layout).tolist()
        run, word = divmod(dim // 4, words)
        block, place = divmod(row, layout.interleaved_rows)
        at = block * layout.interleaved_rows * words + word * layout.interleaved_rows + place
        at = (at * layout.columns + run) * 4 + dim % 4
        assert summary[at] == 0x0F
        assert [byte for byte in summary[: layout.centre_offset] if byte == 0x0F] == [0x0F]
        if layout.centre_bits == 8:
            centre = summary[layout.centre_offset : layout.scales_offset]
            low, high = (((2 * word + part) * layout.columns + run) * 4 + dim % 4 for part in (0, 1))
            assert 64 <= centre[low] <= 127 and 129 <= centre[high] <= 192


def test_what_codes_stand_for_is_exact_in_float16(rng: torch.Generator) -> None:
    for size, row_tokens in ((32, 4), (16, 2)):
        layout = subcentroid_layout(64, size, row_tokens)
        for magnitude in (1e-9, 1.0, 1e9):
            keys = magnitude * torch.randn((7, size, 64), generator=rng, device=rng.device)
            counts = torch.full((7,), size, device=rng.device)
            summaries = reference.summarise_subcentroids(keys, keys, counts, layout)
            found = reference.decode_subcentroids(summaries, layout)
            summaries[:, layout.scales_offset : layout.scales_offset + 8] = 0
            centre = reference.decode_subcentroids(summaries, layout).rows
            for exact in (found.steps * 7.5, found.steps * 0.5, found.value, centre):
                assert torch.equal(exact.half().float(), exact)


@pytest.mark.parametrize(("geometry", "kind"), CASES)
def test_rows_are_means_within_half_a_step(geometry: Geometry, kind: str, rng: torch.Generator) -> None:
    case = make_case(geometry, kind, rng)
    layout, size = geometry.layout, geometry.page_size
    for row, length in enumerate(case.seq_lens.tolist()):
        for place in range(-(-length // size)):
            page = int(case.pages[row, place])
            held = min(length - place * size, size)
            decoded = reference.decode_subcentroids(case.summaries[:, page], layout)
            keys, values = case.keys[:, page, :held].double(), case.values[:, page, :held].double()
            for r, tokens in enumerate(keys.split(layout.row_tokens, 1)):
                error = (decoded.rows[:, r].double() - tokens.mean(1)).abs()
                slack = 1e-5 * case.keys[:, page].float().abs().max() + 1e-5
                assert (error <= decoded.steps.double() / 2 + slack).all()
            spread = values.mean(1).abs().amax(-1, keepdim=True)
            assert ((decoded.value.double() - values.mean(1)).abs() <= spread / 13 + 1e-4).all()


def test_what_lies_past_a_pages_tokens_is_ignored(rng: torch.Generator) -> None:
    layout = subcentroid_layout(64, 32, 4)
    keys = torch.randn((3, 32, 64), generator=rng, device=rng.device)
    counts = torch.tensor([1, 13, 32], device=rng.device)
    rubbish = keys.clone()
    for page, count in enumerate(counts.tolist()):
        rubbish[page, count:] = torch.nan
    expected = reference.summarise_subcentroids(keys, keys, counts, layout)
    assert torch.equal(reference.summarise_subcentroids(rubbish, rubbish, counts, layout), expected)


def test_tokens_of_rows_add_up_to_those_of_the_page() -> None:
    layout = SubcentroidLayout(64, 32, 4, 8)
    counts = torch.arange(33)
    assert torch.equal(row_counts(counts, layout).sum(-1), counts)


@pytest.mark.parametrize(("geometry", "kind"), CASES)
def test_estimated_mass_does_not_exceed_the_true_one(
    geometry: Geometry, kind: str, rng: torch.Generator
) -> None:
    """Over 96 pages and several queries: single pages may be rounded up, all of them together are not."""
    size = geometry.page_size
    case = make_case(geometry, kind, rng, [96 * size, 96 * size])
    lse = reference.estimate(
        case.q.double(), case.summaries, case.safe, case.seq_lens, case.scale, case.layout
    ).double()
    keys = case.keys[:, case.pages[:, :96].long()].double()
    grouped = case.q.double().unflatten(1, (geometry.heads, -1))
    exact = torch.einsum("bhgd,hbmpd->bhgmp", grouped, keys).mul(case.scale).logsumexp(-1).flatten(1, 2)
    excess = lse[:, :, :96].logsumexp(-1) - exact.logsumexp(-1)
    assert excess.max() < 0.05


def test_pages_of_equal_keys_are_estimated_exactly(rng: torch.Generator) -> None:
    geometry = Geometry(2, 64, 32, 4, torch.float32)
    case = make_case(geometry, "normal", rng, [100])
    counts = torch.full((case.keys.shape[1],), 32, device=rng.device)
    counts[case.pages[0, 3]] = 4
    zero = torch.zeros_like(case.keys)
    summaries = reference.summarise_subcentroids(zero, case.values, counts.expand(2, -1), case.layout)
    lse = reference.estimate(case.q.double(), summaries, case.safe, case.seq_lens, case.scale, case.layout)
    expected = torch.tensor([32, 32, 32, 4], device=rng.device).log()
    assert torch.allclose(lse[0, :, :4], expected.expand(4, 4), atol=2e-3)
    scores = reference.log_shares(lse, (case.seq_lens + 31) // 32, 2)
    assert torch.allclose(
        scores[0, :, :4].exp(), torch.tensor([0.32, 0.32, 0.32, 0.04], device=rng.device), atol=1e-3
    )

    indices = torch.tensor([[[1, 2], [0, 3]]], dtype=torch.int32, device=rng.device)
    counted = torch.tensor([[1, 2]], dtype=torch.int32, device=rng.device)
    out, tail_lse = reference.tail(lse.double(), indices, counted, summaries, case.safe, case.layout)
    for head, left in enumerate(([0, 2, 3], [1, 2])):
        tokens = torch.cat([case.values[head, case.pages[0, i], : 4 if i == 3 else 32] for i in left])
        assert torch.allclose(out[0, 2 * head], tokens.mean(0), atol=0.05)
        assert float(tail_lse[0, 2 * head].exp()) == pytest.approx(len(tokens), rel=2e-2)
