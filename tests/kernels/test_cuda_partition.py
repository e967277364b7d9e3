"""A layer's misses are partitioned such that no other partition ends sooner; the timestamps hold the predicted time."""

from __future__ import annotations

import pytest
import torch
from cuda_problem import Problem
from triton_cases import Shape, integers, relative_error

from rheo_kernels.cuda.offload import TIMESTAMPS, Costs

pytestmark = pytest.mark.usefixtures("cuda_kernels")

SHAPE = Shape(heads=2, group=4, dim=64, page_size=16, dtype=torch.bfloat16)
DRAWS = 40


def time(share: float, missed: int, hits: float, costs: Costs) -> float:
    """Microseconds until all is attended if the CPU attends a share of the misses."""
    longer = costs.slowdown if 0 < share < 1 else 1.0
    fetch = costs.fetch_latency + (1 - share) * missed * costs.fetch_page * longer if share < 1 else 0.0
    cpu = costs.cpu_latency + share * missed * costs.cpu_page * longer if share > 0 else 0.0
    return max(hits, fetch, cpu)


def draw_costs(rng: torch.Generator) -> Costs:
    """Costs by which either part is the faster one at times, and hits take long at times."""
    fetch_latency, cpu_latency, fetch, cpu, slower, hit = torch.rand(
        6, generator=rng, device=rng.device
    ).tolist()
    return Costs(
        20 * fetch_latency, 2 * fetch, 20 * cpu_latency, 2 * cpu, 1 + slower, hit if hit < 0.3 else 0.0
    )


def test_no_other_partition_ends_sooner(rng: torch.Generator) -> None:
    from rheo_kernels.cuda.attend import Workspace, attend_selected
    from rheo_kernels.cuda.send_queries import send_queries
    from rheo_sglang.cpu_offload.cpu_attention import CpuAttention
    from rheo_sglang.cpu_offload.service import CpuService

    counts = integers(1, 40, (2, SHAPE.heads), rng).tolist()
    problem = Problem(SHAPE, counts, True, rng)
    expected, _ = problem.exact()
    selected, width = problem.selected, problem.pages.shape[2]
    host = problem.pinned[None]
    cpu = CpuAttention(host, 2, SHAPE.group, width, SHAPE.page_size, 2, host.is_pinned())
    step = torch.zeros((), dtype=torch.int32, device=rng.device)
    service = CpuService(cpu, 1, step, torch.zeros(6, device=rng.device))
    offload = service.prepare(0, problem.scale)
    workspace = Workspace.allocate(4, SHAPE.group, SHAPE.dim, SHAPE.page_size, width, rng.device)
    cpu_begin = torch.zeros((2, SHAPE.heads), dtype=torch.int32, device=rng.device)
    out = torch.empty_like(problem.q)
    hit = int(selected.num_hits.sum())
    misses = selected.num_selected - selected.num_hits
    missed = int(misses.sum())
    assert hit > 0 and missed > 0
    ways = set()
    for _ in range(DRAWS):
        costs = draw_costs(rng)
        fetch_scale, cpu_scale = (0.25 + 2 * torch.rand(2, generator=rng, device=rng.device)).tolist()
        offload.costs.copy_(torch.tensor(costs))
        service.cost_scales.copy_(torch.tensor([[fetch_scale, cpu_scale]]))
        step += 1
        send_queries(problem.q, offload)
        operands = problem.q, problem.frames, problem.pinned, selected, problem.scale, SHAPE.page_size
        attend_selected(*operands, workspace, out, None, offload, cpu_begin)
        assert relative_error(out, expected) < 1e-2

        hits = min(costs.fetch_latency, costs.cpu_latency) + hit * costs.hit_page
        scaled = costs._replace(
            fetch_latency=costs.fetch_latency * fetch_scale,
            fetch_page=costs.fetch_page * fetch_scale,
            cpu_latency=costs.cpu_latency * cpu_scale,
            cpu_page=costs.cpu_page * cpu_scale,
        )
        timings = dict(zip(TIMESTAMPS, service.timings[0].tolist(), strict=True))
        chosen = int(service.load_quota[0, 0])
        best = min(time(part / 256, missed, hits, scaled) for part in range(257))
        step_of_share = missed * max(scaled.fetch_page, scaled.cpu_page) * scaled.slowdown / 256
        assert timings["expected"] / 1e3 <= best * (1 + 1e-5) + 1e-3
        assert time(chosen / 256, missed, hits, scaled) <= best * (1 + 1e-5) + step_of_share
        ways.add("fetched" if chosen == 0 else "cpu" if chosen == 256 else "both")

        assert torch.equal(cpu_begin, selected.num_selected - (misses * chosen >> 8))
        offloaded = int((selected.num_selected - cpu_begin).sum())
        longer = costs.slowdown if 0 < offloaded < missed else 1.0
        by_cpu = costs.cpu_latency + offloaded * costs.cpu_page * longer if offloaded else 0.0
        by_fetch = costs.fetch_latency + (missed - offloaded) * costs.fetch_page * longer
        hidden = offloaded == missed or by_fetch * fetch_scale < hits
        assert timings["expected_cpu"] == pytest.approx(1e3 * by_cpu, rel=1e-5, abs=2)
        assert timings["expected_fetch"] == pytest.approx(0 if hidden else 1e3 * by_fetch, rel=1e-5, abs=2)
    assert ways == {"fetched", "cpu", "both"}
    service.doorbell.close()
