"""The CUDA C++ select_resolve gives exactly what its references define, and what the Triton kernel gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from test_triton_select import DISTRIBUTIONS
from triton_cases import integers, normal, page_lists, residency, to_device

from rheo_kernels import reference
from rheo_kernels.cuda import compile as compile_module
from rheo_kernels.cuda.select_resolve import MAX_PAGES, SOURCE, block_shape, select_resolve
from rheo_kernels.types import HitCounters, ResidencyBonus, RunnersUp, Selected, Stamps

pytestmark = pytest.mark.usefixtures("cuda_kernels")

SPECIAL = torch.tensor([torch.inf, -torch.inf, torch.nan, -torch.nan, 1.0, -1.0, 3e38, -3e38, 1e-45, -1e-45])

KINDS = DISTRIBUTIONS | {
    "equal": lambda x: torch.full_like(x, 0.25),
    "two levels": lambda x: (x > 1).float(),
    "few levels": lambda x: (2 * x).round() + 0.5,
    "special": lambda x: SPECIAL.to(x.device)[(x * 1e4).long() % len(SPECIAL)],
    "special few": lambda x: torch.where(x > 2.5, torch.nan, torch.where(x < -2.5, -torch.inf, x)),
    "crowd and outliers": lambda x: torch.where(x > 3, x * 1e30, torch.where(x < -3, x, 1 + 1e-6 * x)),
    "neighbours": lambda x: (1_000_000_000 + (1e3 * x).int()).view(torch.float32),
    "rising": lambda x: torch.arange(x.shape[-1], device=x.device).float().expand_as(x).contiguous(),
    "falling": lambda x: -torch.arange(x.shape[-1], device=x.device).float().expand_as(x).contiguous(),
}


@dataclass(frozen=True)
class Case:
    """Inputs of one call; pages and residency are random."""

    num_pages: list[int]
    width: int
    kind: str = "normal"
    heads: int = 2
    frames: int = 300
    page_size: int = 16
    sink: int = 1
    window: int = 2
    spare: int = 3
    budget: int | None = None
    long_lengths: bool = True


@dataclass
class Inputs:
    """A case's tensors; `run` calls a kernel on fresh outputs."""

    case: Case
    scores: torch.Tensor
    pages: torch.Tensor
    counts: torch.Tensor
    seq_lens: torch.Tensor
    budget: torch.Tensor
    table: torch.Tensor

    @classmethod
    def draw(cls, case: Case, rng: torch.Generator) -> Inputs:
        batch, columns = len(case.num_pages), max(case.num_pages) + case.spare
        total = sum(case.num_pages) + 8
        counts = to_device(case.num_pages, rng)
        lengths = counts * case.page_size - integers(0, case.page_size, (batch,), rng)
        scores = KINDS[case.kind](normal((batch, case.heads, columns), torch.float32, rng))
        past = torch.arange(columns, device=rng.device) >= counts[:, None, None]
        if case.budget is None:
            budget = integers(1, case.width + 1, (batch, case.heads), rng)
        else:
            budget = torch.full((batch, 1), case.budget, dtype=torch.int32, device=rng.device)
        return cls(
            case,
            scores.masked_fill(past, -torch.inf),
            page_lists(case.num_pages, columns, total, rng),
            counts,
            lengths.clamp(min=0).to(torch.int64 if case.long_lengths else torch.int32),
            budget.expand(batch, case.heads),
            residency(case.heads, total, case.frames, rng)[0],
        )

    def run(
        self, kernel, observed: bool = True, **options
    ) -> tuple[Selected, torch.Tensor | None, HitCounters | None]:
        case, device, batch = self.case, self.scores.device, len(self.case.num_pages)
        out = Selected.allocate(batch, case.heads, case.width, device)
        for buffer in out:
            buffer.fill_(-7)
        accessed = counters = None
        if observed:
            accessed = torch.zeros((case.heads, case.frames), dtype=torch.int8, device=device)
            totals = (
                torch.ones((batch + 2, 3, case.heads), dtype=dtype, device=device)[:, 1]
                for dtype in (torch.float32, torch.int64, torch.int64)
            )
            counters = HitCounters(*totals, torch.arange(batch, device=device).flip(0) + 1)
        kernel(
            self.scores,
            self.pages,
            self.counts,
            self.seq_lens,
            self.budget,
            self.table,
            case.page_size,
            case.sink,
            case.window,
            out,
            accessed,
            counters,
            **options,
        )
        return out, accessed, counters


def first_of_the_best(scores: list[float], budget: int, case: Case) -> list[int]:
    """The selection of one request and KV head, ascending."""
    pages = len(scores)
    forced = [p for p in range(pages) if p < case.sink or p >= pages - max(case.window, 1)]
    rest = sorted(set(range(pages)) - set(forced))
    signed = [math.copysign(math.inf, s) if math.isnan(s) else s for s in scores]
    best = sorted(rest, key=lambda p: -signed[p])[: max(min(budget, case.width) - len(forced), 0)]
    return sorted(forced + best)[: case.width]


def expected(inputs: Inputs) -> Selected:
    """What the references give, hits before misses."""
    case = inputs.case
    indices = torch.full((len(case.num_pages), case.heads, case.width), -1, dtype=torch.int32)
    for row, (request, count) in enumerate(zip(inputs.scores.tolist(), case.num_pages, strict=True)):
        for head, scores in enumerate(request):
            chosen = first_of_the_best(scores[:count], int(inputs.budget[row, head]), case)
            indices[row, head, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    indices = indices.to(inputs.scores.device)
    safe = inputs.pages.clamp(max=inputs.table.shape[1] - 1)
    return reference.resolve(indices, safe, inputs.seq_lens, inputs.table, case.page_size)


def check(case: Case, rng: torch.Generator) -> None:
    inputs = Inputs.draw(case, rng)
    out, accessed, counters = inputs.run(select_resolve)
    wanted = expected(inputs)
    for name, mine, theirs in zip(Selected._fields, out, wanted, strict=True):
        assert torch.equal(mine, theirs), name

    assert accessed is not None and counters is not None
    marked = torch.zeros((case.heads, case.frames + 1), dtype=torch.int8, device=rng.device)
    marked.scatter_(1, wanted.hits.transpose(0, 1).flatten(1).long() + 1, 1)
    assert torch.equal(accessed, marked[:, 1:])
    slots = counters.slots
    assert torch.equal(counters.hits[slots], wanted.num_hits.long() + 1)
    assert torch.equal(counters.selected[slots], wanted.num_selected.long() + 1)
    share = wanted.num_hits / wanted.num_selected.clamp(min=1)
    torch.testing.assert_close(counters.rates[slots], share + 1)
    for total in counters[:3]:
        whole = total._base
        assert whole is not None and whole[:, [0, 2]].eq(1).all() and whole[[0, -1]].eq(1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [64, 256, 1000, 2048, 4096, 8192])
def test_equals_references(columns: int, kind: str, rng: torch.Generator) -> None:
    pages = [columns, columns // 3, columns - 1, 5]
    check(Case(pages, width=columns // 4, kind=kind, frames=columns, spare=0), rng)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [16384, 32768])
def test_equals_references_on_very_long_contexts(columns: int, kind: str, rng: torch.Generator) -> None:
    check(Case([columns, columns - 77], columns // 4, kind, heads=1, frames=columns // 3, spare=0), rng)


@pytest.mark.parametrize("kind", ["normal", "equal", "few levels", "special"])
@pytest.mark.parametrize(
    "case",
    [
        Case([120, 1, 33, 0, 2, 509], width=130),
        Case([120, 1, 33, 0, 2, 509], width=130, long_lengths=False, page_size=64),
        Case([700, 3], width=40, budget=1),
        Case([700, 3], width=40, budget=0, sink=0, window=0),
        Case([700, 300], width=700, budget=1000),
        Case([700, 300], width=2000, budget=299),
        Case([1024, 30, 3], width=60, budget=5, sink=20, window=20),
        Case([1024, 30, 25], width=16, budget=5, sink=10, window=12),
        Case([1024, 30, 25], width=16, budget=5, sink=30, window=12),
        Case([4000, 20], width=450, frames=1),
        Case([4000, 20], width=450, frames=9000),
        Case([8000], width=8000, frames=5000),
        Case([20000], width=20000, frames=9000, heads=1),
    ],
    ids=repr,
)
def test_equals_references_at_the_edges(case: Case, kind: str, rng: torch.Generator) -> None:
    check(replace(case, kind=kind), rng)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_triton_kernel(kind: str, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    inputs = Inputs.draw(Case([4093, 1, 700, 2048], width=450, kind=kind, heads=8, frames=1500), rng)
    mine, accessed, counters = inputs.run(select_resolve)
    theirs, triton_accessed, triton_counters = inputs.run(kernels.select_resolve)
    assert accessed is not None and counters is not None
    assert triton_accessed is not None and triton_counters is not None
    for name, one, other in zip(Selected._fields, mine, theirs, strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(accessed, triton_accessed)
    torch.testing.assert_close(counters.rates, triton_counters.rates, rtol=1e-6, atol=0)
    for name, one, other in zip(HitCounters._fields[1:], counters[1:], triton_counters[1:], strict=True):
        assert torch.equal(one, other), name


def test_accessed_bits_and_counters_are_optional(rng: torch.Generator) -> None:
    inputs = Inputs.draw(Case([500, 40], width=60), rng)
    out, _, _ = inputs.run(select_resolve, observed=False)
    for name, mine, theirs in zip(Selected._fields, out, expected(inputs), strict=True):
        assert torch.equal(mine, theirs), name


def left_out(lse: torch.Tensor, out: Selected) -> torch.Tensor:
    """``lse`` without the estimates of selected pages."""
    batch, heads, _ = out.indices.shape
    chosen = torch.zeros((batch, heads, lse.shape[2] + 1), dtype=torch.bool, device=lse.device)
    chosen.scatter_(2, out.indices.long() % chosen.shape[2], True)
    return lse.unflatten(1, (heads, -1)).masked_fill(chosen[:, :, None, :-1], -torch.inf).view(lse.shape)


@pytest.mark.parametrize("language", ["cuda", "triton"])
@pytest.mark.parametrize("group", [1, 4, 7])
@pytest.mark.parametrize("columns", [120, 4100])
def test_estimates_of_selected_pages_are_excluded(
    columns: int, group: int, language: str, rng: torch.Generator
) -> None:
    from rheo_kernels import triton as kernels

    inputs = Inputs.draw(Case([columns, 1, 33, 0], width=columns // 8, frames=columns // 3), rng)
    lse = normal((4, 2 * group, inputs.scores.shape[2]), torch.float32, rng)
    before = lse.clone()
    out, _, _ = inputs.run(select_resolve if language == "cuda" else kernels.select_resolve, lse=lse)
    for name, mine, theirs in zip(Selected._fields, out, expected(inputs), strict=True):
        assert torch.equal(mine, theirs), name
    assert torch.equal(lse, left_out(before, out))
    assert lse.isinf().any()


@pytest.mark.parametrize("language", ["cuda", "triton"])
@pytest.mark.parametrize("columns", [120, 4100, 16384])
def test_selected_pages_are_stamped_with_the_step_and_no_others(
    columns: int, language: str, rng: torch.Generator
) -> None:
    from rheo_kernels import triton as kernels

    counts = [columns, 1, 33, 0] if columns < 10000 else [columns]
    inputs = Inputs.draw(Case(counts, width=columns // 8, frames=columns // 3), rng)
    step = torch.tensor(9, dtype=torch.int32, device=rng.device)
    layers = integers(0, 8, (2, *inputs.table.shape), rng)
    before = layers.clone()
    run = select_resolve if language == "cuda" else kernels.select_resolve
    out, _, _ = inputs.run(run, stamps=Stamps(step, layers[1]))
    reference.stamp_selected(out.pages, Stamps(step, before[1]))
    assert torch.equal(layers, before)
    assert int((layers == 9).sum()) >= int(out.num_selected.sum()) > 0


@pytest.mark.parametrize(
    ("language", "columns"), [("cuda", 120), ("cuda", 4100), ("cuda", 16384), ("triton", 120)]
)
@pytest.mark.parametrize("kind", ["normal", "special"])
def test_a_bonus_ranks_pages_with_a_frame_higher_and_leaves_their_scores(
    columns: int, kind: str, language: str, rng: torch.Generator
) -> None:
    from rheo_kernels import triton as kernels

    counts = [columns, 1, 33, columns // 2] if columns < 10000 else [columns]
    inputs = Inputs.draw(Case(counts, columns // 8, kind, frames=columns // 3, budget=columns // 8), rng)
    floors = torch.tensor([0.0, 0.5, -1.0, 0.9][: len(counts)], device=rng.device)
    bonus, before = ResidencyBonus(0.75, floors), inputs.scores.clone()
    run = select_resolve if language == "cuda" else kernels.select_resolve
    out, _, _ = inputs.run(run, bonus=bonus)
    listed = inputs.pages, inputs.counts, inputs.table
    ranked = replace(inputs, scores=reference.favour(before, *listed, bonus))
    for name, mine, theirs in zip(Selected._fields, out, expected(ranked), strict=True):
        assert torch.equal(mine, theirs), name
    assert torch.equal(inputs.scores.view(torch.int32), before.view(torch.int32))
    plain = expected(inputs)
    without_floor = floors <= 0
    assert torch.equal(out.indices[~without_floor], plain.indices[~without_floor])
    hits, before_hits = (found.num_hits[without_floor] for found in (out, plain))
    assert (hits >= before_hits).all()
    assert kind != "normal" or int(hits.sum()) > int(before_hits.sum())


def test_nan_and_requests_with_a_floor_keep_their_scores_bit_by_bit(device: str) -> None:
    scores = torch.tensor([torch.nan, -torch.nan, -0.0, 1.0], device=device).repeat(2, 1, 1)
    pages = torch.arange(4, dtype=torch.int32, device=device).repeat(2, 1)
    counts = torch.tensor([4, 4], dtype=torch.int32, device=device)
    floors = torch.tensor([0.0, 0.5], device=device)
    found = reference.favour(scores, pages, counts, pages[:1], ResidencyBonus(0.75, floors))
    bits, before = (tensor.view(torch.int32)[:, 0] for tensor in (found, scores))
    assert torch.equal(bits[1], before[1])
    assert torch.equal(bits[0, :2], before[0, :2])
    assert found[0, 0, 2:].tolist() == [0.75, 1.75]


def test_runners_up_are_behind_what_a_bonus_selects(rng: torch.Generator) -> None:
    case = Case([4000], 160, heads=1, budget=160, frames=400)
    inputs = Inputs.draw(case, rng)
    found = RunnersUp(
        *(torch.zeros(shape, dtype=torch.int32, device=rng.device) for shape in ((1, 1, 128), (1, 1)))
    )
    bonus = ResidencyBonus(1.0, torch.zeros(1, device=rng.device))
    out, _, _ = inputs.run(select_resolve, runners_up=found, bonus=bonus)
    listed = inputs.pages, inputs.counts, inputs.table
    ranked = reference.favour(inputs.scores, *listed, bonus)
    best = reference.runners_up(ranked, out.indices, *listed, 512)
    count = int(found.counts)
    assert 10 < count <= 128 < int(best.counts)
    assert set(found.pages[0, 0, :count].tolist()) == set(best.pages[0, 0, :count].tolist())


def check_runners_up(case: Case, room: int, rng: torch.Generator) -> int:
    """Runners-up are among the best pages without a frame that were left out: all down to one of them, where there is
    room. How many there are."""
    inputs = Inputs.draw(case, rng)
    batch = len(case.num_pages)
    shape = (batch, case.heads, room)
    found = RunnersUp(
        torch.full(shape, -7, dtype=torch.int32, device=rng.device),
        torch.full(shape[:2], -7, dtype=torch.int32, device=rng.device),
    )
    out, _, _ = inputs.run(select_resolve, runners_up=found)
    for name, mine, theirs in zip(Selected._fields, out, expected(inputs), strict=True):
        assert torch.equal(mine, theirs), name
    resident = (inputs.table >= 0).tolist()
    lists, counts, indices = inputs.pages.tolist(), found.counts.tolist(), out.indices.tolist()
    for row, (request, pages) in enumerate(zip(inputs.scores.tolist(), case.num_pages, strict=True)):
        for head, scores in enumerate(request):
            signed = [math.copysign(math.inf, s) if math.isnan(s) else s for s in scores[:pages]]
            scored = range(case.sink, pages - max(case.window, 1))
            left = set(scored) - set(indices[row][head])
            best = [lists[row][p] for p in sorted(left, key=lambda p: (-signed[p], p))]
            missing = [page for page in best if not resident[head][page]]
            count = counts[row][head]
            assert 0 <= count <= room
            listed = found.pages[row, head, :count].tolist()
            assert len(set(listed)) == count
            assert set(listed) <= set(missing[: count if count < room else None])
            assert found.pages[row, head, count:].eq(-7).all()
    return int(found.counts.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [128, 5])
@pytest.mark.parametrize("columns", [64, 1000, 4096, 16384])
def test_runners_up_are_the_best_pages_left_out(
    columns: int, room: int, kind: str, rng: torch.Generator
) -> None:
    counts = [columns, columns // 3, columns - 1, 5][: 4 if columns < 10000 else 1]
    case = Case(counts, width=columns // 16 + 5, kind=kind, heads=1, frames=columns // 10, spare=0)
    check_runners_up(case, room, rng)


def test_there_are_runners_up(rng: torch.Generator) -> None:
    found = [check_runners_up(Case([4000], 160, budget=160, frames=400), 128, rng) for _ in range(20)]
    assert min(found) > 50


@pytest.mark.parametrize("columns", [0, 1, 4, 511, 512, 513, 4096, 4097, MAX_PAGES])
def test_block_shape_holds_the_page_list(columns: int) -> None:
    threads, items = block_shape(columns)
    assert threads * items >= columns
    assert items % 4 == 0
    assert threads in (128, 256, 512, 1024)


def test_refuses_what_it_cannot_read(rng: torch.Generator) -> None:
    inputs = Inputs.draw(Case([20, 9], width=8), rng)
    with pytest.raises(ValueError, match=r"scores has dtype torch\.float64"):
        replace(inputs, scores=inputs.scores.double()).run(select_resolve)
    with pytest.raises(ValueError, match=r"pages has dtype torch\.int32 and strides \(1, 2\)"):
        replace(inputs, pages=inputs.pages.t().contiguous().t()).run(select_resolve)
    with pytest.raises(ValueError, match=r"lse has shape \(2, 4, 24\)"):
        inputs.run(select_resolve, lse=torch.zeros((2, 4, 24), device=rng.device))
    with pytest.raises(ValueError, match="32769 columns are too wide"):
        block_shape(MAX_PAGES + 1)


def test_what_the_kernel_before_may_write_is_read_after_the_wait_for_it() -> None:
    """The emulator runs one kernel after the other: only the order in the source shows a read that comes too early."""
    body = (Path(compile_module.__file__).parent / SOURCE).read_text().partition('extern "C" __global__')[2]
    wait = body.index("wait_for_last_kernel();")
    for operand in ("a.scores", "a.budget"):
        assert operand in body
        assert body.index(operand) > wait
