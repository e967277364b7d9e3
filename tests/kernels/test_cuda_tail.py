"""The CUDA C++ attention kernel attends the pages left out, too: equal to float64, and nothing where none are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from cuda_problem import Problem
from test_triton_attend import TOLERANCE
from triton_cases import Shape, integers, normal, page_lists, relative_error

from rheo_kernels import reference
from rheo_kernels.types import Coverage, Tail
from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_kernels.types.subcentroids import CENTRE_GROUPS, GROUPS, subcentroid_layout

pytestmark = pytest.mark.usefixtures("cuda_kernels")

BF16, FP16 = torch.bfloat16, torch.float16
SHAPES = [
    Shape(2, group, dim, page_size, dtype)
    for group, dim, page_size, dtype in (
        (4, 128, 32, BF16),
        (1, 64, 16, FP16),
        (7, 64, 32, BF16),
        (8, 128, 16, FP16),
        (16, 128, 32, BF16),
        (3, 80, 16, BF16),
        (2, 96, 32, BF16),
        (2, 256, 16, BF16),
    )
]
EIGHT_BIT_SHAPE = Shape(2, 4, 128, 32, BF16, EIGHT_BITS)
CODE_TOLERANCE = 4e-3
"""Of the products of 4-bit codes and weights of bfloat16."""


@dataclass
class LeftOut:
    """Random pages left out of lists of which some are shorter than others."""

    shape: Shape
    num_pages: list[int]
    tail: Tail

    @classmethod
    def draw(cls, shape: Shape, num_pages: list[int], rng: torch.Generator, share: float = 0.7) -> LeftOut:
        """``share`` of the pages of every list is left out."""
        batch, width, total = len(num_pages), max(num_pages) + 5, sum(num_pages) + 9
        layout = subcentroid_layout(shape.dim, shape.page_size, 4)
        whole = integers(0, 256, (shape.heads, total + 3, layout.width), rng).to(torch.uint8)
        scales = whole[..., layout.scales_offset + GROUPS + CENTRE_GROUPS]
        scales.copy_(integers(90, 110, tuple(scales.shape), rng))
        lse = math.log(shape.page_size) + normal((batch, shape.heads, shape.group, width), torch.float32, rng)
        drawn = torch.rand((batch, shape.heads, 1, width), generator=rng, device=rng.device)
        past = torch.arange(width, device=rng.device) >= torch.tensor(num_pages, device=rng.device)[:, None]
        lse = lse.masked_fill((drawn >= share) | past[:, None, None], -torch.inf)
        pages = page_lists(num_pages, width + 2, total, rng)[:, :width]
        return cls(shape, num_pages, Tail(lse.flatten(1, 2), whole[:, 1:-2], pages, layout))

    def exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and natural-log LSE of the pages left out."""
        heads, device = self.shape.heads, self.tail.lse.device
        nothing = torch.zeros((len(self.num_pages), heads), dtype=torch.int32, device=device)
        lse, summaries, pages, layout, *_ = self.tail
        safe = pages.clamp(max=summaries.shape[1] - 1)
        return reference.tail(lse.double(), nothing[..., None], nothing, summaries, safe, layout)


def attend(problem: Problem, tail: Tail | None, misses: bool, splits: int = 0) -> torch.Tensor:
    """The kernel's output, of lists split as for ``tail``, or ``splits`` times."""
    from rheo_kernels.cuda.attend import Workspace, attend_selected
    from rheo_kernels.types import Partials

    shape, device = problem.shape, problem.q.device
    pairs, width = problem.q.shape[0] * shape.heads, problem.selected.hits.shape[2]
    tail_width = 0 if tail is None else tail.lse.shape[2]
    sizes = pairs, shape.group, shape.dim, shape.page_size, width, device, tail_width
    workspace = Workspace.allocate(*sizes, kv_bytes=shape.kv.itemsize)
    if splits:
        parts = Partials.allocate(pairs, shape.group, shape.dim, splits, device)
        workspace = workspace._replace(parts=parts, tail_lse=torch.empty_like(parts.lse))
    out = torch.full_like(problem.q, torch.nan)
    host = problem.pinned if misses else None
    operands = problem.q, problem.frames, host, problem.selected, problem.scale, shape.page_size, workspace
    for _ in range(2):
        attend_selected(*operands, out, tail=tail)
        assert workspace.arrived.eq(0).all()
    return out


def expected(problem: Problem, left: LeftOut) -> torch.Tensor:
    return reference.merge(*problem.exact(), *(part.double() for part in left.exact()))[0]


def tolerance(shape: Shape) -> float:
    return max(TOLERANCE[shape.dtype], CODE_TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "misses"),
    [(shape, True) for shape in SHAPES] + [(shape, False) for shape in SHAPES[::4]],
    ids=str,
)
def test_pages_left_out_are_attended_with_the_selected_ones(
    shape: Shape, misses: bool, rng: torch.Generator
) -> None:
    problem = Problem(shape, [[20, 0], [1, 60], [0, 0], [7, 9]], misses, rng)
    problem.selected.valid[1, 1, 7] = 5
    left = LeftOut.draw(shape, [203, 90, 0, 17], rng)
    exact = expected(problem, left)
    assert relative_error(problem.exact()[0], exact) > 0.1, "what is left out matters"
    out = attend(problem, left.tail, misses)
    assert relative_error(out, exact) < tolerance(shape)
    assert out[2].eq(0).all(), "a padded row has an output"


@pytest.mark.parametrize("shape", SHAPES[:5:2], ids=str)
def test_nothing_left_out_leaves_the_output_as_it_was(shape: Shape, rng: torch.Generator) -> None:
    problem = Problem(shape, [[20, 0], [1, 60]], True, rng)
    left = LeftOut.draw(shape, [50, 130], rng, share=0)
    assert left.tail.lse.eq(-torch.inf).all()
    assert torch.equal(attend(problem, left.tail, True, 3), attend(problem, None, True, 3))


@pytest.mark.parametrize("shape", [*SHAPES[:2], EIGHT_BIT_SHAPE], ids=str)
def test_hits_misses_the_cpu_s_part_and_pages_left_out_make_one_output(
    shape: Shape, rng: torch.Generator
) -> None:
    from rheo_kernels.cuda.attend import Workspace, attend_selected
    from rheo_kernels.cuda.send_queries import send_queries
    from rheo_sglang.cpu_offload.cpu_attention import CpuAttention
    from rheo_sglang.cpu_offload.service import CpuService

    problem = Problem(shape, [[40, 0], [1, 60], [0, 0]], True, rng)
    left = LeftOut.draw(shape, [203, 90, 0], rng)
    width, page_size, pairs = problem.pages.shape[2], shape.page_size, 3 * shape.heads
    host = problem.pinned.expand(2, *problem.pinned.shape)
    cpu = CpuAttention(
        host, 4, shape.group, width + 2, page_size, 3, host.is_pinned(), query_dtype=shape.dtype
    )
    step = torch.zeros((), dtype=torch.int32, device=rng.device)
    costs = torch.tensor((5.0, 1.0, 0.0, 0.5, 1.2, 0.0), device=rng.device)
    service = CpuService(cpu, 2, step, costs)
    sizes = pairs, shape.group, shape.dim, page_size, width, rng.device, 208
    workspace = Workspace.allocate(*sizes, kv_bytes=shape.kv.itemsize)
    cpu_begin = torch.zeros((3, shape.heads), dtype=torch.int32, device=rng.device)
    staged = torch.zeros((pairs, 7, 2, shape.block), dtype=shape.kv, device=rng.device)
    factor = 0.3 if shape.stored else 1.0
    operands = (
        problem.q,
        problem.frames,
        problem.pinned,
        problem.selected,
        problem.scale,
        page_size,
        workspace,
    )
    for _ in range(2):
        step += 1
        for layer in range(2):
            offload = service.prepare(layer, problem.scale)
            problem.q.copy_(normal(problem.q.shape, shape.dtype, rng))
            out = torch.full_like(problem.q, torch.nan)
            send_queries(problem.q, offload)
            attend_selected(*operands, out, staged, offload, cpu_begin, layer, tail=left.tail, factor=factor)
            assert relative_error(out, factor * expected(problem, left)) < tolerance(shape)
    service.doorbell.close()
    fetched = int((cpu_begin - problem.selected.num_hits).sum())
    assert 0 < fetched < int((problem.selected.num_selected - problem.selected.num_hits).sum())


def test_nothing_is_read_past_the_end_of_a_list(rng: torch.Generator) -> None:
    shape = SHAPES[0]
    problem = Problem(shape, [[3, 0], [11, 60], [0, 0], [2, 2]], False, rng)
    left = LeftOut.draw(shape, [300, 131, 0, 16], rng)
    exact = expected(problem, left)
    for row, pages in enumerate(left.num_pages):
        left.tail.lse[row, :, pages:] = torch.nan
    num_pages = torch.tensor(left.num_pages, dtype=torch.int32, device=rng.device)
    out = attend(problem, left.tail._replace(num_pages=num_pages), False)
    assert relative_error(out, exact) < tolerance(shape)


@pytest.mark.parametrize("splits", [1, 2, 40])
def test_how_lists_are_split_does_not_matter(splits: int, rng: torch.Generator) -> None:
    shape = SHAPES[0]
    problem = Problem(shape, [[3, 0], [11, 60]], False, rng)
    left = LeftOut.draw(shape, [300, 130], rng)
    out = attend(problem, left.tail, False, splits)
    assert relative_error(out, expected(problem, left)) < tolerance(shape)


@pytest.mark.parametrize("offset", [-1e4, -30.0, 40.0, 1e4])
def test_estimates_may_be_huge_or_tiny(offset: float, rng: torch.Generator) -> None:
    shape = SHAPES[0]
    problem = Problem(shape, [[9, 1]], True, rng)
    left = LeftOut.draw(shape, [140], rng)
    left.tail.lse.add_(offset)
    out = attend(problem, left.tail, True)
    assert relative_error(out, expected(problem, left)) < tolerance(shape)
    if offset < 0:
        assert relative_error(out, attend(problem, None, True)) < 1e-6
    else:
        assert relative_error(out, left.exact()[0]) < tolerance(shape)


def test_estimates_may_rise_and_fall_along_a_list(rng: torch.Generator) -> None:
    shape = SHAPES[0]
    problem = Problem(shape, [[2, 2], [3, 0]], False, rng)
    left = LeftOut.draw(shape, [260, 260], rng)
    slope = torch.linspace(-60, 60, left.tail.lse.shape[2], device=rng.device)
    left.tail.lse[:, ::2] += slope
    left.tail.lse[:, 1::2] -= slope
    out = attend(problem, left.tail, False, 1)
    assert relative_error(out, expected(problem, left)) < tolerance(shape)


def test_a_long_list_of_which_one_page_is_left_out(rng: torch.Generator) -> None:
    shape = SHAPES[0]
    problem = Problem(shape, [[2, 1]], False, rng)
    left = LeftOut.draw(shape, [1030], rng, share=0)
    left.tail.lse[0, : shape.group, 1029] = 3.0
    left.tail.lse[0, shape.group :, 500] = 4.0
    out = attend(problem, left.tail, False)
    assert relative_error(out, expected(problem, left)) < tolerance(shape)


@pytest.mark.parametrize("shape", SHAPES[:5:2], ids=str)
def test_the_share_of_attention_that_is_not_the_tail_s_is_counted(shape: Shape, rng: torch.Generator) -> None:
    problem = Problem(shape, [[20, 0], [1, 60], [0, 0], [40, 3]], True, rng)
    left = LeftOut.draw(shape, [203, 90, 0, 50], rng)
    left.tail.lse[3].fill_(-torch.inf)
    shares = torch.ones((6, 2, shape.heads), device=rng.device)
    slots = torch.tensor([4, 1, 0, 2], device=rng.device)
    out = attend(problem, left.tail._replace(coverage=Coverage(shares[:, 1], slots)), True, 3)
    assert relative_error(out, expected(problem, left)) < tolerance(shape)
    selected, tail = problem.exact()[1], left.exact()[1].double()
    covered = (1 - (tail - torch.logaddexp(selected, tail)).exp()).nan_to_num(1.0)
    mean = covered.unflatten(1, (shape.heads, -1)).mean(-1).float()
    torch.testing.assert_close(shares[slots, 1], 1 + 2 * mean, rtol=1e-3, atol=1e-3)
    assert mean[3].eq(1).all() and mean[0, 1] < 0.01 < mean[0, 0] < 0.99
    assert shares[:, 0].eq(1).all() and shares[[3, 5]].eq(1).all()


def test_a_narrow_selection_from_long_lists_is_split_as_the_pages_left_out_need() -> None:
    from rheo_kernels.cuda.workspace import num_splits

    assert num_splits(8, 5, 240, 128, 0.2) == 26, "the fewest of up to five tiles"
    assert num_splits(8, 5, 240) == 5
    assert num_splits(64, 82, 240, 128, 0.2) >= num_splits(64, 82, 240)


def test_summaries_that_are_not_packed_are_refused(rng: torch.Generator) -> None:
    shape = SHAPES[0]
    problem = Problem(shape, [[2, 1]], False, rng)
    tail = LeftOut.draw(shape, [20], rng).tail
    with pytest.raises(ValueError, match=r"pages of \d+ bytes one after the other"):
        attend(problem, tail._replace(summaries=tail.summaries[:, ::2]), False)
