"""Every page summary: it depends on a page's tokens alone, and append, write and score equal the reference.

"Equal" is up to one rounding to the summary's dtype or one step of its codes, and to float32's roundings in sums and
scores.
"""

from __future__ import annotations

import inspect
import itertools
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from triton_cases import (
    EIGHT_BIT_SHAPES,
    GPU,
    GPU_SHAPES,
    SHAPES,
    Shape,
    integers,
    normal,
    page_lists,
    permutation,
    pinned,
    relative_error,
    residency,
    same,
    to_device,
)

from rheo_kernels import reference
from rheo_kernels.reference import block_keys, block_values, widen
from rheo_kernels.reference.subcentroids import decode_subcentroids, row_counts
from rheo_kernels.types import UNSCALED, KVScales
from rheo_kernels.types.subcentroids import GROUPS
from rheo_sglang.config import ConfigError, RheoConfig
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.plan import KVShape, plan_pools
from rheo_sglang.selection import SUMMARIES, EstimatingSummary, PageSummary, ScoringSummary

ENGINES = ["reference", "triton"]
PAGES = 8
NAN = float("nan")


@pytest.fixture(params=SUMMARIES.names())
def summary(request: pytest.FixtureRequest) -> PageSummary:
    return SUMMARIES[request.param]()


@pytest.fixture(params=[name for name in SUMMARIES.names() if issubclass(SUMMARIES[name], ScoringSummary)])
def scoring(request: pytest.FixtureRequest) -> ScoringSummary:
    return SUMMARIES[request.param]()


def kernels_of(engine: str) -> ModuleType:
    from rheo_kernels import triton

    return reference if engine == "reference" else triton


def storage(summary: PageSummary, heads: int, pages: int, shape: Shape, rng: torch.Generator) -> torch.Tensor:
    """Summaries ``[H, N, R, W]`` whose every bit is left over from something else."""
    width = summary.row_width(shape.dim, shape.page_size)
    dtype = summary.dtype(shape.dtype)
    return torch.full((heads, pages, summary.rows, width), 77, device=rng.device).to(dtype)


def summarised(
    summary: PageSummary, pages: int, shape: Shape, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random keys ``[H, N, D, P]`` of full pages, and their summaries."""
    keys = normal((shape.heads, pages, shape.dim, shape.page_size), shape.dtype, rng)
    counts = torch.full((pages,), shape.page_size, device=rng.device)
    return keys, summary.fold_chunk(keys, keys.transpose(2, 3), counts).to(summary.dtype(shape.dtype))


STEP_BELOW = 8 / 9
"""Of a step that is rounded to three bits behind the first, the least next to it."""


def assert_equal_once_rounded(
    summary: PageSummary,
    shape: Shape,
    actual: torch.Tensor,
    expected: torch.Tensor,
    held: torch.Tensor | None = None,
) -> None:
    """Equal, or rounded to the step next to it.

    ``held`` tokens a page, ``[N]``: rows without a token do not count, nor do the steps of pages with one row, whose
    differences are what rounding its centre left, and that depends on the last bit of a quotient.
    """
    expected = expected.to(actual.dtype)
    if isinstance(summary, EstimatingSummary):
        if torch.equal(actual, expected):
            return
        layout = summary.layout(shape.dim, shape.page_size)
        mine, theirs = decode_subcentroids(actual, layout), decode_subcentroids(expected, layout)
        ratio = mine.steps / theirs.steps
        rounded_apart = ratio != 1
        counts = (
            held if held is not None else torch.full(actual.shape[1:2], shape.page_size, device=actual.device)
        )
        differing = (row_counts(counts, layout) > 0).sum(-1) > 1
        judged, apart = (part[:, differing] for part in (ratio, rounded_apart))
        assert bool(((judged >= STEP_BELOW) & (judged <= 1 / STEP_BELOW)).all())
        one_group = shape.dim / GROUPS
        assert float(apart.sum()) <= max(0.02 * apart.numel(), one_group)
        largest_step = torch.maximum(mine.steps, theirs.steps)
        allowed = torch.where(rounded_apart, 2.2, 1.2) * largest_step
        within = (mine.rows - theirs.rows).abs() <= allowed[..., None, :]
        if held is not None:
            within |= (row_counts(held, layout) == 0)[:, None, :, None]
        assert bool(within.all())
        largest = theirs.value.abs().amax(-1, keepdim=True)
        assert bool(((mine.value - theirs.value).abs() <= 0.2 * largest).all())
        return
    if not actual.dtype.is_floating_point:
        difference = (actual.long() - expected.long()).abs()
        assert int(difference.max()) <= 1
        return
    step = max(torch.finfo(actual.dtype).eps, 1e-5)
    torch.testing.assert_close(actual, expected, rtol=step, atol=1e-5)


def skip_unsupported(summary: PageSummary, shape: Shape) -> None:
    reason = summary.unsupported(shape.dim, shape.page_size, shape.dtype)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_page_takes_the_bytes_that_the_summary_says(summary: PageSummary, shape: Shape) -> None:
    skip_unsupported(summary, shape)
    table = PageTable(
        3,
        shape.heads,
        shape.dim,
        shape.page_size,
        5,
        2,
        summary.name,
        "importance",
        shape.dtype,
        "cpu",
    )
    rows = 3 * shape.heads * 5
    assert table.summaries.nbytes == rows * summary.bytes_per_page(shape.dim, shape.page_size, shape.dtype)
    assert table.summaries.shape[3:] == (summary.rows, summary.row_width(shape.dim, shape.page_size))
    plan = KVShape(3, shape.heads, shape.dim, shape.dtype, shape.page_size)
    assert plan.table_bytes(summary.name) >= table.summaries.nbytes // 5


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_what_a_summary_does_not_serve_stops_the_start(summary: PageSummary, page_size: int) -> None:
    for head_dim in (16, 80, 128, 256):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            shape = KVShape(1, 1, head_dim, dtype, page_size)
            config = RheoConfig(summary=summary.name, frame_pool_tokens=1024)
            reason = summary.unsupported(head_dim, page_size, dtype)
            assert reason is None or (reason and "\n" not in reason)
            if reason is None:
                plan_pools(config, shape, 1 << 40, 1 << 40, None, False)
            else:
                with pytest.raises(ConfigError, match=reason):
                    plan_pools(config, shape, 1 << 40, 1 << 40, None, False)


def test_an_unsupported_combination_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = SUMMARIES["mean"]
    reason = "needs a head size that is a power of two, not 80"
    monkeypatch.setattr(cls, "unsupported", lambda *shape: reason if shape[1] == 80 else None)
    config = RheoConfig(summary="mean", frame_pool_tokens=1024)
    plan_pools(config, KVShape(1, 1, 64, torch.bfloat16, 32), 1 << 40, 1 << 40, None, False)
    with pytest.raises(ConfigError) as caught:
        plan_pools(config, KVShape(1, 1, 80, torch.bfloat16, 32), 1 << 40, 1 << 40, None, False)
    sentence = str(caught.value)
    assert sentence.startswith("rheo: summary='mean' is not supported; allowed: bound")
    assert reason in sentence


class Pages:
    """Pages of one request in one layer, host pages and frames full of NaN, filled by one engine's kernels."""

    def __init__(self, engine: str, summary: PageSummary, shape: Shape) -> None:
        self.kernels, self.summary, self.shape = kernels_of(engine), summary, shape
        device = "cuda" if GPU and engine == "triton" else "cpu"
        rng = torch.Generator(device)
        self.host = torch.full((PAGES, shape.heads, 2, shape.block), NAN, dtype=shape.dtype)
        if device == "cuda":
            self.host = self.host.pin_memory()
        self.frames = torch.full((shape.heads, PAGES, 2, shape.block), NAN, dtype=shape.dtype, device=device)
        self.page_table = torch.stack([torch.randperm(PAGES) for _ in range(shape.heads)]).int().to(device)
        self.summaries = storage(summary, shape.heads, PAGES, shape, rng)

    def write(self, k: torch.Tensor, slots: torch.Tensor) -> None:
        k, slots = k.to(self.frames.device), slots.to(self.frames.device)
        self.kernels.write(k, k, slots, self.host, self.summary, self.summaries, self.shape.page_size)
        if self.frames.is_cuda:
            torch.cuda.synchronize()
        for page in slots.div(self.shape.page_size, rounding_mode="floor").unique().tolist():
            for head in range(self.shape.heads):
                self.frames[head, self.page_table[head, page]] = self.host[page, head].to(self.frames.device)

    def append(self, k: torch.Tensor, slots: torch.Tensor) -> None:
        for token, slot in zip(k.to(self.frames.device)[:, None], slots.tolist(), strict=True):
            page, offset = (
                torch.tensor([part], dtype=torch.int32, device=self.frames.device)
                for part in divmod(slot, self.shape.page_size)
            )
            self.kernels.append(
                token,
                token,
                page,
                offset,
                self.page_table,
                self.frames,
                self.summary,
                self.summaries,
                self.shape.page_size,
            )
            if hasattr(self.kernels, "summarise_tails"):
                self.kernels.summarise_tails(
                    page,
                    offset,
                    self.page_table,
                    self.frames,
                    self.summary,
                    self.summaries,
                    self.shape.dim,
                    self.shape.page_size,
                )


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Shape, torch.Tensor, torch.Tensor, list[int], int]:
    """Keys of a sequence with their slots, the chunks that its first tokens come in, and how many those are."""
    shape = Shape(
        heads=draw(st.sampled_from([1, 2])),
        dim=draw(st.sampled_from([16, 32, 48])),
        page_size=draw(st.sampled_from([16, 32, 64])),
        dtype=draw(st.sampled_from([torch.bfloat16, torch.float32])),
    )
    tokens = draw(st.integers(1, 2 * shape.page_size + 3))
    prompt = draw(st.integers(max(0, tokens - 2 * shape.page_size), tokens))
    cuts = draw(st.sets(st.integers(1, max(prompt, 1)), max_size=3))
    seeded = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    keys = (torch.randn(tokens, shape.heads, shape.dim, generator=seeded) * 3).to(shape.dtype)
    pages = 1 + torch.randperm(PAGES - 1, generator=seeded)
    position = torch.arange(tokens)
    slots = pages[position // shape.page_size] * shape.page_size + position % shape.page_size
    return shape, keys, slots, sorted({0, *(cut for cut in cuts if cut <= prompt), prompt}), prompt


@pytest.mark.parametrize("engine", ENGINES)
@settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=arrivals())
def test_however_tokens_come_a_page_is_summarised_alike(
    engine: str,
    summary: PageSummary,
    device: str,
    case: tuple[Shape, torch.Tensor, torch.Tensor, list[int], int],
) -> None:
    shape, keys, slots, cuts, prompt = case
    assume(summary.unsupported(shape.dim, shape.page_size, shape.dtype) is None)
    pieces, whole = Pages(engine, summary, shape), Pages(engine, summary, shape)
    for start, end in itertools.pairwise(cuts):
        pieces.write(keys[start:end], slots[start:end])
    pieces.append(keys[prompt:], slots[prompt:])
    whole.write(keys, slots)
    for start in range(0, len(slots), shape.page_size):
        held = keys[start : start + shape.page_size]
        page = int(slots[start]) // shape.page_size
        padded = torch.full((shape.page_size, *held.shape[1:]), NAN, dtype=torch.float64)
        padded[: len(held)] = held.double()
        keys_held, values_held = padded.permute(1, 2, 0)[:, None], padded.transpose(0, 1)[:, None]
        expected = summary.fold_chunk(keys_held, values_held, torch.tensor([len(held)]))[:, 0]
        tokens = torch.tensor([len(held)])
        one, other = (summaries[:, page : page + 1] for summaries in (pieces.summaries, whole.summaries))
        assert_equal_once_rounded(summary, shape, other.cpu(), expected[:, None], tokens)
        assert_equal_once_rounded(summary, shape, one, other, tokens.to(one.device))


def chunk_slots(
    chunks: list[tuple[int, int]], page_size: int, total: int, rng: torch.Generator
) -> torch.Tensor:
    """Slots of chunks ``(first position, length)``, each on pages of its own, ``[T]``."""
    pages = permutation(total - 1, rng) + 1
    parts, used = [], 0
    for first, length in chunks:
        position = torch.arange(first, first + length, device=rng.device)
        local = position // page_size - first // page_size
        parts.append(pages[used + local] * page_size + position % page_size)
        used += int(local[-1]) + 1
    assert used < total
    return torch.cat(parts)


def check_write(
    summary: PageSummary,
    shape: Shape,
    chunks: list[tuple[int, int]],
    rng: torch.Generator,
    programs: int = 32,
) -> None:
    from rheo_kernels import triton as kernels

    skip_unsupported(summary, shape)
    total = 2 + sum(length // shape.page_size + 2 for _, length in chunks)
    slots = chunk_slots(chunks, shape.page_size, total, rng)
    wide = normal((slots.numel(), 2 * shape.heads, shape.dim), shape.kv, rng)
    k, v = wide[:, : shape.heads], wide[:, shape.heads :]
    expected = normal((total, shape.heads, 2, shape.block), shape.kv, rng).cpu()
    host = pinned(expected.to(rng.device))
    summaries = storage(summary, shape.heads, total, shape, rng)
    untouched = summaries.clone()
    reference.write(k, v, slots, expected, summary, untouched, shape.page_size)
    kernels.write(k, v, slots, host, summary, summaries, shape.page_size, programs)
    if rng.device.type == "cuda":
        torch.cuda.synchronize()
    assert same(host, expected)
    held = torch.full((total,), shape.page_size, device=rng.device)
    written = slots // shape.page_size
    held[written] = 0
    held.scatter_reduce_(0, written, slots % shape.page_size + 1, "amax")
    assert_equal_once_rounded(summary, shape, summaries, untouched, held)


@pytest.mark.parametrize("shape", [*SHAPES, EIGHT_BIT_SHAPES[0]], ids=str)
def test_write_equals_the_reference(summary: PageSummary, shape: Shape, rng: torch.Generator) -> None:
    size = shape.page_size
    check_write(summary, shape, [(0, 2 * size), (3, 5), (size - 1, 1), (size + 2, size), (0, 1)], rng)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunks=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 70)), min_size=1, max_size=6),
    programs=st.sampled_from([1, 4, 32]),
)
def test_write_equals_the_reference_on_any_batch(
    summary: PageSummary, device: str, chunks: list[tuple[int, int]], programs: int
) -> None:
    check_write(summary, Shape(dim=32), chunks, torch.Generator(device).manual_seed(len(chunks)), programs)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GPU_SHAPES[::3], ids=str)
def test_write_equals_the_reference_on_long_chunks(
    summary: PageSummary, shape: Shape, rng: torch.Generator
) -> None:
    check_write(summary, shape, [(0, 2000), (777, 1000), (64, 640)], rng)


@pytest.mark.parametrize("shape", [*SHAPES, *EIGHT_BIT_SHAPES], ids=str)
def test_append_equals_the_reference(summary: PageSummary, shape: Shape, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    skip_unsupported(summary, shape)
    heads, pages, frames = shape.heads, 12, 12
    table, _ = residency(heads, pages, frames, rng)
    for head in range(heads):
        missing = (table[head, 1:] < 0).nonzero().squeeze(1) + 1
        free = torch.tensor(sorted(set(range(frames)) - set(table[head].tolist())), device=rng.device)
        table[head, missing] = free[: missing.numel()].to(torch.int32)
    tail_pages = to_device([3, 0, 7, 5], rng)
    offsets = to_device([0, 2, shape.page_size - 1, 4], rng)
    k, v = (normal((4, heads, shape.dim), shape.dtype, rng) for _ in range(2))
    scales = UNSCALED if shape.stored is None else KVScales(0.37, 0.004)
    blocks = normal((heads, frames, 2, shape.block), shape.kv, rng)
    keys = block_keys(blocks, shape.page_size)
    summaries = storage(summary, heads, pages, shape, rng)
    head = torch.arange(heads, device=rng.device)[:, None]
    listed = torch.tensor([7, 5], device=rng.device)
    counts = torch.tensor([shape.page_size - 1, 4], device=rng.device)
    place = table[:, listed].long()
    values = block_values(blocks, shape.page_size)
    so_far = summary.fold_chunk(widen(keys[head, place]), widen(values[head, place]), counts)
    summaries[:, listed] = so_far.to(summaries.dtype)
    expected, folded = blocks.clone(), summaries.clone()
    reference.append(k, v, tail_pages, offsets, table, expected, summary, folded, shape.page_size, scales)
    kernels.append(k, v, tail_pages, offsets, table, blocks, summary, summaries, shape.page_size, scales)
    assert same(blocks, expected)
    kernels.summarise_tails(
        tail_pages, offsets, table, blocks, summary, summaries, shape.dim, shape.page_size
    )
    assert same(blocks, expected)
    held = torch.full((pages,), shape.page_size, device=rng.device)
    held[tail_pages.long()] = offsets.long() + 1
    assert_equal_once_rounded(summary, shape, summaries, folded, held)


def test_append_skips_padded_rows_and_absent_tails(summary: PageSummary, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    table = torch.full((1, 4), -1, dtype=torch.int32, device=rng.device)
    blocks = normal((1, 2, 2, 1024), torch.float32, rng)
    summaries = storage(summary, 1, 4, Shape(), rng)
    before = blocks.clone(), summaries.clone()
    key = normal((2, 1, 64), torch.float32, rng)
    offsets = integers(0, 16, (2,), rng)
    tails = to_device([0, 2], rng)
    kernels.append(key, key, tails, offsets, table, blocks, summary, summaries, 16)
    kernels.summarise_tails(tails, offsets, table, blocks, summary, summaries, 64, 16)
    assert torch.equal(blocks, before[0])
    assert torch.equal(summaries, before[1])


def check_score(
    summary: ScoringSummary,
    shape: Shape,
    grouping: str,
    num_pages: list[int],
    total: int,
    rng: torch.Generator,
) -> None:
    from rheo_kernels import triton as kernels

    pages = page_lists(num_pages, max(num_pages) + 5, total, rng)
    counts = to_device(num_pages, rng)
    q = normal((len(num_pages), shape.heads * shape.group, shape.dim), shape.dtype, rng)
    _, summaries = summarised(summary, total, shape, rng)
    scale = shape.dim**-0.5
    safe = pages.clamp(max=total - 1)
    expected = reference.score(q.double(), summary, summaries, safe, counts, scale, grouping)
    out = torch.full(expected.shape, NAN, dtype=torch.float32, device=rng.device)
    kernels.score(q, summary, summaries, pages, counts, scale, grouping, out=out)
    listed = torch.isfinite(expected)
    assert torch.equal(out == -torch.inf, ~listed)
    assert relative_error(out[listed], expected[listed]) < 1e-5


@pytest.mark.parametrize("grouping", ["mean", "max"])
@pytest.mark.parametrize("shape", [*SHAPES, Shape(heads=1, group=20, dim=32)], ids=str)
def test_score_equals_the_reference(
    scoring: ScoringSummary, shape: Shape, grouping: str, rng: torch.Generator
) -> None:
    check_score(scoring, shape, grouping, [37, 0, 1], 64, rng)


@pytest.mark.gpu
@pytest.mark.parametrize("grouping", ["mean", "max"])
@pytest.mark.parametrize("shape", GPU_SHAPES[::3], ids=str)
def test_score_equals_the_reference_on_long_contexts(
    scoring: ScoringSummary, shape: Shape, grouping: str, rng: torch.Generator
) -> None:
    check_score(scoring, shape, grouping, [2048, 17, 900, 33], 3200, rng)


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_requests_own_pages_are_scored(
    engine: str, scoring: ScoringSummary, rng: torch.Generator
) -> None:
    shape = Shape(heads=2, group=2, dim=32)
    pages = torch.tensor([[3, 1, 2, 6], [5, 99, -7, 99], [2, 3, 99, 99]], dtype=torch.int32)
    counts = torch.tensor([4, 1, 2], dtype=torch.int32)
    _, summaries = summarised(scoring, 7, shape, rng)
    q = normal((3, 4, 32), torch.float32, rng)
    out = torch.full((3, 2, 4), NAN, device=rng.device)
    operands = pages.to(rng.device), counts.to(rng.device)
    assert kernels_of(engine).score(q, scoring, summaries, *operands, 1.0, out=out) is out
    past = (torch.arange(4) >= counts[:, None, None]).expand(3, 2, 4)
    assert torch.equal((out == -torch.inf).cpu(), past)
    assert torch.isfinite(out.cpu().masked_fill(past, 0.0)).all()


def test_every_summary_says_what_it_is(summary: PageSummary) -> None:
    assert all(inspect.getdoc(type(summary)) != inspect.getdoc(base) for base in type(summary).__mro__[1:])
    assert summary.name in SUMMARIES.names()
    assert SUMMARIES[summary.name] is type(summary)
