"""A layer's misses are divided such that no other division ends sooner, and the clock says what that was to take."""

from __future__ import annotations

import pytest
import torch
from cuda_problem import Problem
from triton_cases import Shape, integers, relative_error

from rheo_kernels.cuda.share import CLOCK, Costs

pytestmark = pytest.mark.usefixtures("cuda_kernels")

SHAPE = Shape(heads=2, group=4, dim=64, page_size=16, dtype=torch.bfloat16)
DRAWS = 40


def time(share: float, missed: int, hits: float, costs: Costs) -> float:
    """Microseconds until all is attended if the CPU attends a share of the misses."""
    longer = costs.slowdown if 0 < share < 1 else 1.0
    fetch = costs.fetch_begin + (1 - share) * missed * costs.fetch_page * longer if share < 1 else 0.0
    cpu = costs.cpu_begin + share * missed * costs.cpu_page * longer if share > 0 else 0.0
    return max(hits, fetch, cpu)


def draw_costs(rng: torch.Generator) -> Costs:
    """Either way the faster one at times, and hits long at times."""
    begin_fetch, begin_cpu, fetch, cpu, slower, hit = torch.rand(6, generator=rng, device=rng.device).tolist()
    return Costs(20 * begin_fetch, 2 * fetch, 20 * begin_cpu, 2 * cpu, 1 + slower, hit if hit < 0.3 else 0.0)


def test_no_other_division_ends_sooner(rng: torch.Generator) -> None:
    from rheo_kernels.cuda.attend import Workspace, attend_selected
    from rheo_kernels.cuda.send_queries import send_queries
    from rheo_sglang.split.cpu_attention import CpuAttention
    from rheo_sglang.split.service import CpuService

    counts = integers(1, 40, (2, SHAPE.heads), rng).tolist()
    problem = Problem(SHAPE, counts, True, rng)
    expected, _ = problem.exact()
    selected, width = problem.selected, problem.pages.shape[2]
    host = problem.pinned[None]
    cpu = CpuAttention(host, 2, SHAPE.group, width, SHAPE.page_size, 2, host.is_pinned())
    step = torch.zeros((), dtype=torch.int32, device=rng.device)
    service = CpuService(cpu, 1, step, torch.zeros(6, device=rng.device))
    share = service.prepare(0, problem.scale)
    workspace = Workspace.allocate(4, SHAPE.group, SHAPE.dim, SHAPE.page_size, width, rng.device)
    cuts = torch.zeros((2, SHAPE.heads), dtype=torch.int32, device=rng.device)
    out = torch.empty_like(problem.q)
    hit = int(selected.num_hits.sum())
    misses = selected.num_selected - selected.num_hits
    missed = int(misses.sum())
    assert hit > 0 and missed > 0
    ways = set()
    for _ in range(DRAWS):
        costs = draw_costs(rng)
        fetch_pace, cpu_pace = (0.25 + 2 * torch.rand(2, generator=rng, device=rng.device)).tolist()
        share.costs.copy_(torch.tensor(costs))
        service.paces.copy_(torch.tensor([[fetch_pace, cpu_pace]]))
        step += 1
        send_queries(problem.q, share)
        operands = problem.q, problem.frames, problem.pinned, selected, problem.scale, SHAPE.page_size
        attend_selected(*operands, workspace, out, None, share, cuts)
        assert relative_error(out, expected) < 1e-2

        hits = min(costs.fetch_begin, costs.cpu_begin) + hit * costs.hit_page
        paced = costs._replace(
            fetch_begin=costs.fetch_begin * fetch_pace,
            fetch_page=costs.fetch_page * fetch_pace,
            cpu_begin=costs.cpu_begin * cpu_pace,
            cpu_page=costs.cpu_page * cpu_pace,
        )
        clock = dict(zip(CLOCK, service.clocks[0].tolist(), strict=True))
        chosen = int(service.rules[0, 0])
        best = min(time(part / 256, missed, hits, paced) for part in range(257))
        step_of_share = missed * max(paced.fetch_page, paced.cpu_page) * paced.slowdown / 256
        assert clock["expected"] / 1e3 <= best * (1 + 1e-5) + 1e-3
        assert time(chosen / 256, missed, hits, paced) <= best * (1 + 1e-5) + step_of_share
        ways.add("fetched" if chosen == 0 else "cpu" if chosen == 256 else "both")

        assert torch.equal(cuts, selected.num_selected - (misses * chosen >> 8))
        handed = int((selected.num_selected - cuts).sum())
        longer = costs.slowdown if 0 < handed < missed else 1.0
        by_cpu = costs.cpu_begin + handed * costs.cpu_page * longer if handed else 0.0
        by_fetch = costs.fetch_begin + (missed - handed) * costs.fetch_page * longer
        hidden = handed == missed or by_fetch * fetch_pace < hits
        assert clock["expected_cpu"] == pytest.approx(1e3 * by_cpu, rel=1e-5, abs=2)
        assert clock["expected_fetch"] == pytest.approx(0 if hidden else 1e3 * by_fetch, rel=1e-5, abs=2)
    assert ways == {"fetched", "cpu", "both"}
    service.bell.close()
