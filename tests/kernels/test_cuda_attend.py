"""The CUDA C++ attention kernel equals float64 attention on ragged lists, from frames and from host memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cuda_problem import Problem
from test_triton_attend import TOLERANCE, exact_attend
from triton_cases import (
    GPU,
    GPU_SHAPES,
    Shape,
    integers,
    normal,
    page_lists,
    permutation,
    pinned,
    relative_error,
    same,
)

from rheo_kernels.types.kv_scales import EIGHT_BITS

pytestmark = pytest.mark.usefixtures("cuda_kernels")

EXACT_TO = 2e-3
"""Pages of 8 bits: what rounding the output to bfloat16 costs, since numbers and their weights lose less."""
EIGHT_BIT_SHAPES = [
    Shape(2, 4, 128, 32, torch.bfloat16, EIGHT_BITS),
    Shape(2, 7, 80, 16, torch.float16, EIGHT_BITS),
    Shape(1, 16, 64, 64, torch.bfloat16, EIGHT_BITS),
]
SHAPES = [dataclasses.replace(shape, heads=2) for shape in (GPU_SHAPES if GPU else GPU_SHAPES[::11])]


def test_shapes_that_do_not_fit_are_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from rheo_kernels.cuda.attend import unsupported
    from rheo_kernels.cuda.shape import Shape as Served

    if not GPU:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda")
    bf16, fp16 = torch.bfloat16, torch.float16
    assert unsupported(Served(16, 16, 1, bf16, EIGHT_BITS), device) is None
    for shape, reason in (
        (Served(128, 32, 4, torch.float32, EIGHT_BITS), "computes in torch.float32"),
        (Served(128, 32, 4, bf16, fp16), "KV dtype is torch.float16"),
        (Served(72, 32, 4, bf16, bf16), "does not fit its tiles"),
        (Served(512, 16, 16, bf16, EIGHT_BITS), "leaves no room in pages of 16384 bytes"),
    ):
        assert reason in str(unsupported(shape, device))
    assert "compute capability" in str(unsupported(Served(128, 32, 4, bf16, bf16), torch.device("cpu")))


def check_staged(problem: Problem, staged: torch.Tensor, room: int) -> None:
    """The first ``room`` missed pages of each list were kept as they are in host memory, and nothing else."""
    batch, heads, selected = problem.q.shape[0], problem.shape.heads, problem.selected
    for b in range(batch):
        for h in range(heads):
            first, last = int(selected.num_hits[b, h]), int(selected.num_selected[b, h])
            kept = selected.misses[b, h, first:last][:room].long()
            assert same(staged[b * heads + h, : kept.numel()], problem.host[kept, h])
            assert staged[b * heads + h, kept.numel() :].float().isnan().all()


@pytest.mark.parametrize("misses", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_selected_pages_equal_exact_attention(shape: Shape, misses: bool, rng: torch.Generator) -> None:
    from rheo_kernels.cuda.attend import Workspace, attend_selected

    counts = integers(0, 90, (3, shape.heads), rng).tolist()
    counts[0][0], counts[1][0], counts[2][0] = 0, 1, 200
    problem = Problem(shape, counts, misses, rng)
    batch, selected, room = 3, problem.selected, 11
    selected.valid[2, 0, 7] = 5
    selected.valid[2, 0, min(int(selected.num_hits[2, 0]) + 3, 199)] = 9
    expected, _ = problem.exact()
    workspace = Workspace.allocate(
        batch * shape.heads, shape.group, shape.dim, shape.page_size, 203, rng.device
    )
    out = torch.full_like(problem.q, torch.nan)
    staged = torch.empty((batch * shape.heads, room, 2, shape.block), dtype=shape.dtype, device=rng.device)
    host = problem.pinned if misses else None
    for _ in range(3):
        staged.fill_(torch.nan)
        attend_selected(
            problem.q,
            problem.frames,
            host,
            selected,
            problem.scale,
            shape.page_size,
            workspace,
            out,
            staged if misses else None,
        )
        assert relative_error(out, expected) < TOLERANCE[shape.dtype]
        assert out[0, : shape.group].eq(0).all(), "an empty list has no output"
        assert workspace.arrived.eq(0).all()
        if misses:
            check_staged(problem, staged, room)


@pytest.mark.parametrize(
    ("shape", "bits", "scale"),
    [
        (EIGHT_BIT_SHAPES[0], 0xFF, 1e-3),
        (EIGHT_BIT_SHAPES[0], 0x87, 10.0),
        (EIGHT_BIT_SHAPES[1], 0xFF, 1e-3),
        (EIGHT_BIT_SHAPES[2], 0x87, 10.0),
    ],
    ids=["every_number", "subnormal_ones", "every_number_float16", "subnormal_ones_of_large_pages"],
)
def test_numbers_of_eight_bits_are_attended_exactly(
    shape: Shape, bits: int, scale: float, rng: torch.Generator
) -> None:
    """Also the largest, +-448; from frames and from host memory, and with a scale of V."""
    from rheo_kernels.cuda.attend import Workspace, attend_selected

    counts = [[0] * shape.heads, [1] * shape.heads, [60] * shape.heads]
    problem = Problem(shape, counts, True, rng, bits)
    problem.scale = scale
    selected, room = problem.selected, 11
    selected.valid[2, 0, 7] = 5
    selected.valid[2, 0, min(int(selected.num_hits[2, 0]) + 3, 59)] = 9
    expected, _ = problem.exact()
    pairs, device = 3 * shape.heads, rng.device
    sizes = pairs, shape.group, shape.dim, shape.page_size, 63
    workspace = Workspace.allocate(*sizes, device, kv_bytes=1)
    out = torch.full_like(problem.q, torch.nan)
    staged = torch.full((pairs, room, 2, shape.block), torch.nan, dtype=EIGHT_BITS, device=device)
    operands = problem.q, problem.frames, problem.pinned, selected, scale, shape.page_size, workspace
    attend_selected(*operands, out, staged, factor=0.3)
    assert relative_error(out, 0.3 * expected) < EXACT_TO
    assert out[0].eq(0).all() and workspace.arrived.eq(0).all()
    check_staged(problem, staged, room)


@pytest.mark.parametrize("shape", SHAPES[::5], ids=str)
def test_splits_of_hits_merge_to_exact_attention(shape: Shape, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels
    from rheo_kernels.cuda.attend import Workspace, attend_selected

    counts = integers(1, 60, (2, shape.heads), rng).tolist()
    problem = Problem(shape, counts, False, rng)
    expected, expected_lse = problem.exact()
    workspace = Workspace.allocate(2 * shape.heads, shape.group, shape.dim, shape.page_size, 60, rng.device)
    attend_selected(
        problem.q, problem.frames, None, problem.selected, problem.scale, shape.page_size, workspace, None
    )
    out = torch.full(problem.q.shape, torch.nan, device=rng.device)
    lse = torch.full(problem.q.shape[:2], torch.nan, device=rng.device)
    kernels.merge(workspace.parts, None, out, lse)
    assert relative_error(out, expected) < TOLERANCE[shape.dtype]
    assert (lse - expected_lse).abs().max() < max(TOLERANCE[shape.dtype] / 4, 2e-5)


@pytest.mark.parametrize("shape", [*SHAPES, EIGHT_BIT_SHAPES[0]], ids=str)
def test_whole_page_lists_equal_exact_attention_wherever_pages_are(
    shape: Shape, rng: torch.Generator
) -> None:
    from rheo_kernels.cuda.attend import Workspace, attend_dense

    heads, page_size, total = shape.heads, shape.page_size, 200
    host = normal((total, heads, 2, shape.block), shape.kv, rng)
    seq_lens = torch.tensor([100 * page_size - 3, 1, 0, 30 * page_size], dtype=torch.int32, device=rng.device)
    num_pages = (-(-seq_lens // page_size)).tolist()
    pages = page_lists(num_pages, 110, total, rng)
    table = torch.full((heads, total), -1, dtype=torch.int32, device=rng.device)
    frames = torch.full((heads, total, 2, shape.block), torch.nan, dtype=shape.kv, device=rng.device)
    for h in range(heads):
        resident = permutation(total, rng)[: total * 2 // 3]
        taken = permutation(total, rng)[: resident.numel()]
        table[h, resident] = taken.to(torch.int32)
        frames[h, taken] = host[resident, h]
    listed = pages.masked_fill(pages >= total, -1)[:, None].expand(-1, heads, -1).contiguous()
    tokens = (seq_lens[:, None] - torch.arange(110, device=rng.device) * page_size).clamp(0, page_size)
    valid = tokens[:, None].expand(-1, heads, -1).contiguous().int()
    q = normal((4, heads * shape.group, shape.dim), shape.dtype, rng)
    scale = shape.dim**-0.5
    expected, _ = exact_attend(q, host.transpose(0, 1), listed, valid, scale, page_size)
    sizes = 4 * heads, shape.group, shape.dim, page_size, 110
    workspace = Workspace.allocate(*sizes, rng.device, kv_bytes=shape.kv.itemsize)
    out = torch.full_like(q, torch.nan)
    missed_at = torch.zeros((), dtype=torch.int32, device=rng.device)
    step = torch.full((), 9, dtype=torch.int32, device=rng.device)
    arguments = (pages, seq_lens, table, scale, page_size, workspace, out, missed_at, step)
    factor = 2.5 if shape.stored else 1.0
    attend_dense(q, frames, pinned(host), *arguments, factor)
    assert relative_error(out, factor * expected) < TOLERANCE[shape.dtype]
    assert out[2].eq(0).all(), "a padded row has an output"
    assert int(missed_at) == 9


@pytest.mark.parametrize("factor", [0.0, 300.0], ids=["equal", "huge"])
def test_scores_may_be_equal_or_huge(factor: float, rng: torch.Generator) -> None:
    from rheo_kernels.cuda.attend import Workspace, attend_selected

    shape = Shape(heads=2, group=4, dim=128, page_size=32, dtype=torch.bfloat16)
    problem = Problem(shape, [[70, 1]], True, rng)
    problem.q *= factor
    expected, _ = problem.exact()
    workspace = Workspace.allocate(2, 4, 128, 32, 73, rng.device)
    out = torch.full_like(problem.q, torch.nan)
    operands = problem.q, problem.frames, problem.pinned, problem.selected, problem.scale, 32
    attend_selected(*operands, workspace, out)
    assert relative_error(out, expected) < TOLERANCE[shape.dtype]


@pytest.mark.parametrize("stored", [None, EIGHT_BITS])
def test_what_lies_behind_a_request_s_last_token_does_not_matter(
    stored: torch.dtype | None, rng: torch.Generator
) -> None:
    from rheo_kernels.cuda.attend import Workspace, attend_selected

    shape = Shape(heads=2, group=4, dim=128, page_size=32, dtype=torch.bfloat16, stored=stored)
    problem = Problem(shape, [[9, 3]], False, rng)
    frame = problem.selected.hits[0, :, 2].long()
    problem.selected.valid[0, :, 2] = 13
    expected, _ = problem.exact()
    for h in range(2):
        block = problem.frames[h, frame[h]]
        block[0].view(shape.dim, shape.page_size)[:, 13:] = torch.nan
        block[1].view(shape.page_size, shape.dim)[13:] = torch.nan
    workspace = Workspace.allocate(2, 4, 128, 32, 12, rng.device, kv_bytes=shape.kv.itemsize)
    out = torch.full_like(problem.q, torch.nan)
    attend_selected(problem.q, problem.frames, None, problem.selected, problem.scale, 32, workspace, out)
    assert relative_error(out, expected) < TOLERANCE[shape.dtype]


@pytest.mark.parametrize(
    "costs",
    [(1e30, 1.0, 0.0, 1.0, 1.0, 0.0), (5.0, 1.0, 0.0, 0.5, 1.2, 0.0), (0.0, 1.0, 1e30, 1.0, 1.0, 0.0)],
)
@pytest.mark.parametrize("batch", [3, 25], ids=["offloaded_by_one_block", "by_several"])
@pytest.mark.parametrize("shape", SHAPES[1 :: 5 if GPU else 2], ids=str)
def test_the_cpu_s_part_and_the_gpu_s_make_exact_attention(
    shape: Shape, costs: tuple[float, ...], batch: int, rng: torch.Generator
) -> None:
    from rheo_kernels.cuda.attend import Workspace, attend_selected
    from rheo_kernels.cuda.send_queries import send_queries
    from rheo_sglang.cpu_offload.cpu_attention import CpuAttention
    from rheo_sglang.cpu_offload.service import CpuService

    counts = integers(0, 180 // batch, (batch, shape.heads), rng).tolist()
    counts[0][0] = 0
    problem = Problem(shape, counts, True, rng)
    width, page_size = problem.pages.shape[2], shape.page_size
    host = problem.pinned.expand(2, *problem.pinned.shape)
    cpu = CpuAttention(host, batch + 1, shape.group, width + 2, page_size, 3, host.is_pinned())
    step = torch.zeros((), dtype=torch.int32, device=rng.device)
    service = CpuService(cpu, 2, step, torch.tensor(costs, device=rng.device))
    workspace = Workspace.allocate(batch * shape.heads, shape.group, shape.dim, page_size, width, rng.device)
    cpu_begin = torch.zeros((batch, shape.heads), dtype=torch.int32, device=rng.device)
    selected = problem.selected
    for _ in range(3):
        step += 1
        for layer in range(2):
            offload = service.prepare(layer, problem.scale)
            problem.q.copy_(normal(problem.q.shape, shape.dtype, rng))
            expected, _ = problem.exact()
            out = torch.full_like(problem.q, torch.nan)
            staged = torch.zeros(
                (batch * shape.heads, 7, 2, shape.block), dtype=shape.dtype, device=rng.device
            )
            send_queries(problem.q, offload)
            operands = problem.q, problem.frames, problem.pinned, selected, problem.scale, page_size
            attend_selected(*operands, workspace, out, staged, offload, cpu_begin, layer)
            assert relative_error(out, expected) < TOLERANCE[shape.dtype]
    assert service.load_quota[:, 0].tolist() in ([0, 0], [256, 256]) or costs[0] == 5.0
    timed = service.totals()
    assert timed.layers == 5, "the latest layer is not summed yet"
    assert 0 < timed.gpu_done <= timed.merged < 60e9
    assert timed.expected > 0
    service.doorbell.close()
    assert service.doorbell.signals == (0 if costs[2] > 1e29 else 6)
    fetched = int((cpu_begin - selected.num_hits).sum())
    missed = int((selected.num_selected - selected.num_hits).sum())
    if costs[0] > 1e29:
        assert fetched == 0
    elif costs[2] > 1e29:
        assert fetched == missed
    else:
        assert 0 < fetched < missed


def test_a_layer_partitions_by_the_cost_scale_that_the_next_one_updated(rng: torch.Generator) -> None:
    from rheo_kernels.cuda.attend import Workspace, attend_selected
    from rheo_kernels.cuda.offload import TIMESTAMPS
    from rheo_kernels.cuda.send_queries import send_queries
    from rheo_sglang.cpu_offload.cpu_attention import CpuAttention
    from rheo_sglang.cpu_offload.service import CpuService

    shape = SHAPES[0]
    problem = Problem(shape, [[8] * shape.heads], True, rng)
    width, page_size = problem.pages.shape[2], shape.page_size
    host = problem.pinned.expand(2, *problem.pinned.shape)
    cpu = CpuAttention(host, 1, shape.group, width, page_size, 2, host.is_pinned())
    step = torch.zeros((), dtype=torch.int32, device=rng.device)
    service = CpuService(cpu, 2, step, torch.tensor((0.0, 1.0, 0.0, 1.0, 1.0, 0.0), device=rng.device))
    workspace = Workspace.allocate(shape.heads, shape.group, shape.dim, page_size, width, rng.device)
    cpu_begin = torch.zeros((1, shape.heads), dtype=torch.int32, device=rng.device)
    selected = problem.selected
    selected.num_hits.zero_()
    selected.misses[0] = torch.where(selected.valid[0] > 0, problem.pages[0], -1)
    expected, _ = problem.exact()

    def attend(layer: int) -> None:
        offload = service.prepare(layer, problem.scale)
        send_queries(problem.q, offload)
        out = torch.full_like(problem.q, torch.nan)
        operands = problem.q, problem.frames, problem.pinned, selected, problem.scale, page_size, workspace
        attend_selected(*operands, out, None, offload, cpu_begin, layer)
        assert relative_error(out, expected) < TOLERANCE[shape.dtype]

    def note(layer: int, **times: int) -> None:
        for name, nanoseconds in times.items():
            service.timings[layer, TIMESTAMPS.index(name)] = nanoseconds

    step += 1
    attend(0)
    assert service.load_quota[0, 0] == 128 and int((cpu_begin == 4).sum()) == shape.heads, (
        "half goes either way"
    )
    note(0, began=1000, expected_fetch=10_000, gpu_done=21_000, expected_cpu=5000, cpu_done=41_000)
    note(1, began=0, expected_fetch=0, expected_cpu=0, cpu_done=0)
    attend(1)
    scales = service.cost_scales.tolist()
    assert scales == [[1 + 1 / 8, 1 + 3 / 8], [1, 1]], "measured twice as long, and longer than the limit"
    step += 1
    note(0, began=1000, expected_fetch=0, expected_cpu=5000, cpu_done=0)
    attend(1)
    scales = service.cost_scales[0].tolist()
    assert scales == pytest.approx([1 + 63 / 64 / 8, 1 + 63 / 64 * 3 / 8]), "without a measurement they decay"
    service.cost_scales[0] = torch.tensor([1.0, 3.0])
    step += 1
    attend(0)
    assert service.load_quota[0, 0] == 64 and int((cpu_begin == 6).sum()) == shape.heads, (
        "a quarter to the CPU"
    )
    service.doorbell.close()
