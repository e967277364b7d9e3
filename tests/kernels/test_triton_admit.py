"""admit, value_frames and gather_misses equal their references."""

from __future__ import annotations

import pytest
import torch
from triton_cases import integers, residency, to_device

from rheo_kernels import reference
from rheo_kernels.types import IdleDecay, RunnersUp


def check_admission(
    candidates: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    page_of: torch.Tensor,
    frame_values: torch.Tensor,
    num_candidates: torch.Tensor | None = None,
) -> None:
    """Who is admitted, who is displaced, and that page table and frames stay each other's inverse."""
    from rheo_kernels import triton as kernels

    old_page_of = page_of.clone()
    expected_table, expected_page_of = table.clone(), page_of.clone()
    offered = candidates.long()
    if num_candidates is not None:
        column = torch.arange(candidates.shape[1], device=candidates.device)
        offered = offered.masked_fill(column >= num_candidates[:, None], -1)
    theirs = reference.admit(offered, values, expected_table, expected_page_of, frame_values)
    mine = kernels.admit(candidates, values, table, page_of, frame_values, num_candidates)
    for row in range(table.shape[0]):
        count = int(mine.counts[row])
        pages, frames = mine.pages[row, :count].long(), mine.frames[row, :count].long()
        expected = int(theirs.counts[row])
        reference_pages, reference_frames = theirs.pages[row, :expected], theirs.frames[row, :expected].long()
        assert count == expected
        assert len(set(frames.tolist())) == count
        worth = dict(zip(offered[row].tolist(), values[row].tolist(), strict=True))
        assert sorted(worth[p] for p in pages.tolist()) == sorted(worth[p] for p in reference_pages.tolist())
        cost = frame_values[row].masked_fill(old_page_of[row] < 0, -torch.inf)
        assert sorted(cost[frames].tolist()) == sorted(cost[reference_frames].tolist())
        assert torch.equal(page_of[row, frames].long(), pages)
        resident = (table[row] >= 0).nonzero().squeeze(1)
        assert torch.equal(page_of[row, table[row, resident].long()].long(), resident)
        assert int((page_of[row] >= 0).sum()) == resident.numel()
    assert table.min() >= -1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("total", "frames", "width"), [(200, 40, 30), (60, 10, 50), (300, 200, 7)])
def test_admit_equals_reference(
    total: int, frames: int, width: int, ties: bool, rng: torch.Generator
) -> None:
    rows = 3
    table, page_of = residency(rows, total, frames, rng)
    candidates = integers(-1, total, (rows, width), rng)
    page_worth = torch.rand((rows, total), generator=rng, device=rng.device)
    if ties:
        page_worth = (page_worth * 4).floor() / 4
    values = page_worth.gather(1, candidates.clamp(min=0).long())
    frame_values = page_worth.gather(1, page_of.clamp(min=0).long())
    frame_values[:, ::3] = torch.inf
    frame_values = frame_values.masked_fill(page_of < 0, -torch.inf)
    check_admission(candidates, values, table, page_of, frame_values)


def test_admit_looks_at_as_many_candidates_as_there_are(rng: torch.Generator) -> None:
    rows, total, frames, width = 4, 200, 40, 30
    table, page_of = residency(rows, total, frames, rng)
    candidates = integers(1, total, (rows, width), rng)
    page_worth = torch.rand((rows, total), generator=rng, device=rng.device) + 1.0
    frame_values = (page_worth.gather(1, page_of.clamp(min=0).long()) - 1.0).masked_fill(
        page_of < 0, -torch.inf
    )
    num_candidates = to_device([0, 1, 17, width], rng)
    values = page_worth.gather(1, candidates.long())
    check_admission(candidates, values, table, page_of, frame_values, num_candidates)


def test_admit_without_candidates_changes_nothing(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    table, page_of = residency(2, 30, 10, rng)
    before = table.clone(), page_of.clone()
    candidates = to_device([-1, 0, int(page_of[0].max())], rng)[None].expand(2, -1).contiguous()
    candidates[1, 2] = page_of[1].max()
    worth = torch.full((2, 3), torch.inf, device=rng.device)
    done = kernels.admit(candidates, worth, table, page_of, torch.zeros((2, 10), device=rng.device))
    assert done.counts.eq(0).all()
    assert torch.equal(table, before[0])
    assert torch.equal(page_of, before[1])


def test_admit_never_takes_a_pinned_frame(rng: torch.Generator) -> None:
    table, page_of = residency(1, 50, 8, rng)
    frame_values = torch.full((1, 8), torch.inf, device=rng.device)
    frame_values[0, 5] = 0.2
    frame_values = frame_values.masked_fill(page_of < 0, -torch.inf)
    absent = (table[0] < 0).nonzero().squeeze(1)[1:7].to(torch.int32)[None]
    worth = torch.full((1, 6), torch.inf, device=rng.device)
    check_admission(absent, worth, table, page_of, frame_values)


@pytest.mark.parametrize("steps", [8, 5000])
@pytest.mark.parametrize("layers", [1, 2])
def test_value_frames_equals_reference(layers: int, steps: int, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    rows, total, frames = layers * 2, 90, 50
    _, page_of = residency(rows, total, frames, rng)
    worth = torch.rand((rows, total), generator=rng, device=rng.device)
    unsaved = torch.rand((layers, total), generator=rng, device=rng.device) < 0.2
    accessed = integers(0, 2, (rows, frames), rng).to(torch.int8)
    last_active = integers(0, 9, (total,), rng)
    step = torch.tensor(steps, dtype=torch.int32, device=rng.device)
    decay = IdleDecay(0.7, step, last_active)
    expected = reference.value_frames(page_of, worth, unsaved, accessed.clone(), decay)
    actual = kernels.value_frames(page_of, worth, unsaved, accessed, decay)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(
        kernels.value_frames(page_of, worth, unsaved), reference.value_frames(page_of, worth, unsaved)
    )
    assert accessed.eq(0).all()


def test_rows_of_which_no_frame_is_wanted_are_not_valued(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    _, page_of = residency(3, 90, 50, rng)
    worth = torch.rand((3, 90), generator=rng, device=rng.device)
    unsaved = torch.zeros((1, 90), dtype=torch.bool, device=rng.device)
    accessed = integers(0, 2, (3, 50), rng).to(torch.int8)
    expected = kernels.value_frames(page_of, worth, unsaved, accessed.clone())
    out = torch.full_like(expected, torch.nan)
    kernels.value_frames(page_of, worth, unsaved, accessed, wanted=to_device([2, 0, 1], rng), out=out)
    assert torch.equal(out[[0, 2]], expected[[0, 2]])
    assert out[1].isnan().all()
    assert accessed.eq(0).all()


def gather(
    misses: torch.Tensor,
    num_hits: torch.Tensor,
    num_selected: torch.Tensor,
    worth: torch.Tensor,
    room: int,
    **options,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates, their values, both with marks where nothing is written, and their number; the boost is 1."""
    from rheo_kernels import triton as kernels

    heads, device = misses.shape[1], misses.device
    candidates = torch.full((heads, room), -7, dtype=torch.int32, device=device)
    values = torch.full((heads, room), torch.nan, device=device)
    counts = torch.full((heads,), -7, dtype=torch.int32, device=device)
    kernels.gather_misses(misses, num_hits, num_selected, worth, 1.0, candidates, values, counts, **options)
    return candidates, values, counts


@pytest.mark.parametrize("room", [200, 23])
@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize("quota", [None, (160, 30000, 40000)])
def test_gather_misses_equals_reference(
    room: int, most: int | None, quota: tuple[int, ...] | None, rng: torch.Generator
) -> None:
    batch, heads, width, runners = 5, 2, 30, 9
    misses = integers(1, 100, (batch, heads, width), rng)
    num_selected = integers(10, width + 1, (batch, heads), rng)
    num_hits = (num_selected * torch.rand((batch, heads), generator=rng, device=rng.device)).to(torch.int32)
    worth = torch.rand((heads, 100), generator=rng, device=rng.device)
    options = {"most": most}
    if quota is not None:
        step = torch.tensor(41, dtype=torch.int32, device=rng.device)
        options |= {"load_quota": to_device(quota, rng), "step": step}
    options["runners_up"] = RunnersUp(
        integers(1, 100, (batch, heads, runners), rng), integers(0, runners + 1, (batch, heads), rng)
    )
    expected, values, counts = reference.gather_misses(
        misses, num_hits, num_selected, worth, 1.0, room, **options
    )
    mine, my_values, my_counts = gather(misses, num_hits, num_selected, worth, room, **options)
    assert torch.equal(my_counts, counts)
    for head, count in enumerate(counts.tolist()):
        assert torch.equal(mine[head, :count], expected[head, :count])
        assert torch.equal(my_values[head, :count], values[head, :count])
    assert quota is None or (expected[:, : counts.min()] == -1).any()


@pytest.mark.parametrize("room", [200, 23])
def test_gather_misses_lists_every_request_in_order(room: int, rng: torch.Generator) -> None:
    batch, heads, width = 5, 2, 30
    misses = integers(1, 100, (batch, heads, width), rng)
    num_selected = integers(0, width + 1, (batch, heads), rng)
    num_hits = (num_selected * torch.rand((batch, heads), generator=rng, device=rng.device)).to(torch.int32)
    worth = torch.rand((heads, 100), generator=rng, device=rng.device)
    candidates, values, counts = gather(misses, num_hits, num_selected, worth, room)
    for head in range(heads):
        listed = [
            int(misses[b, head, column])
            for b in range(batch)
            for column in range(int(num_hits[b, head]), int(num_selected[b, head]))
        ][:room]
        count = int(counts[head])
        assert candidates[head].tolist() == listed + [-7] * (room - len(listed))
        assert count == len(listed)
        assert torch.equal(values[head, :count], worth[head, candidates[head, :count].long()] + 1.0)


@pytest.mark.parametrize(("share", "loaded"), [(0, 0), (256, 0), (128, 0), (256, 65536), (192, 32768)])
def test_gather_misses_lists_what_is_fetched_and_a_share_of_the_rest(
    share: int, loaded: int, rng: torch.Generator
) -> None:
    batch, heads, width, hits = 3, 2, 400, 7
    misses = torch.randperm(5000, generator=rng, device=rng.device)[: batch * heads * width]
    misses = misses.view(batch, heads, width).to(torch.int32) + 1
    num_hits = torch.full((batch, heads), hits, dtype=torch.int32, device=rng.device)
    num_selected = torch.full_like(num_hits, width)
    worth = torch.rand((heads, 5001), generator=rng, device=rng.device)
    load_quota = to_device([share, loaded, 0], rng)
    missed = width - hits
    fetched = missed - (missed * share >> 8)
    draws = []
    for number in (1, 2):
        step = torch.tensor(number, dtype=torch.int32, device=rng.device)
        candidates, _, counts = gather(
            misses, num_hits, num_selected, worth, batch * missed, load_quota=load_quota, step=step
        )
        assert counts.eq(batch * missed).all()
        listed = misses[:, :, hits:].transpose(0, 1)
        actual = candidates.view(heads, batch, missed)
        assert torch.equal(actual[:, :, :fetched], listed[:, :, :fetched])
        rest = actual[:, :, fetched:]
        kept = rest == listed[:, :, fetched:]
        assert (kept | (rest == -1)).all()
        expected = kept.numel() * loaded / 65536
        assert abs(int(kept.sum()) - expected) <= 6 * (expected * (1 - loaded / 65536)) ** 0.5
        draws.append(kept)
    assert torch.equal(*draws) == (loaded in (0, 65536))


@pytest.mark.parametrize("room", [200, 70, 23])
@pytest.mark.parametrize("share", [None, 0, 32768, 65536])
def test_gather_misses_lists_runners_up_after_all_misses(
    share: int | None, room: int, rng: torch.Generator
) -> None:

    batch, heads, width, most = 5, 2, 30, 9
    misses = integers(1, 100, (batch, heads, width), rng)
    num_hits = torch.full((batch, heads), width - 7, dtype=torch.int32, device=rng.device)
    num_selected = num_hits + integers(0, 8, (batch, heads), rng)
    ahead = RunnersUp(integers(1, 100, (batch, heads, most), rng), integers(0, most + 1, (batch, heads), rng))
    worth = torch.rand((heads, 100), generator=rng, device=rng.device)
    limited = {}
    if share is not None:
        step = torch.tensor(3, dtype=torch.int32, device=rng.device)
        limited = {"load_quota": to_device([0, 65536, share], rng), "step": step}
    candidates, values, counts = gather(
        misses, num_hits, num_selected, worth, room, runners_up=ahead, **limited
    )
    for head in range(heads):
        missed = [
            page
            for b in range(batch)
            for page in misses[b, head, num_hits[b, head] : num_selected[b, head]].tolist()
        ]
        left_out = [
            page for b in range(batch) for page in ahead.pages[b, head, : ahead.counts[b, head]].tolist()
        ]
        count = min(len(missed) + len(left_out), room)
        assert int(counts[head]) == count
        found = candidates[head].tolist()
        assert found[count:] == [-7] * (room - count)
        assert found[: len(missed)] == missed[:room]
        offered = list(zip(found[len(missed) : count], left_out, strict=False))
        assert all(page in (-1, expected) for page, expected in offered)
        if share != 32768:
            assert all((page == -1) == (share == 0) for page, _ in offered)
        elif len(offered) > 12:
            assert {page == -1 for page, _ in offered} == {False, True}
        boost = (torch.arange(room, device=rng.device) < len(missed)).float()
        listed = candidates[head] > 0
        expected_values = worth[head, candidates[head].clamp(min=0).long()] + boost
        assert torch.equal(values[head][listed], expected_values[listed])


@pytest.mark.gpu
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("total", "frames", "width"),
    [(8192, 4096, 1024), (30000, 20000, 3000), (30000, 16500, 60), (9000, 5, 300)],
)
def test_admit_equals_reference_at_scale(
    total: int, frames: int, width: int, ties: bool, rng: torch.Generator
) -> None:
    test_admit_equals_reference(total, frames, width, ties, rng)
