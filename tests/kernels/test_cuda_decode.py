"""GpuDecodeEngine gives what ReferenceDecodeEngine gives, step after step, whatever is resident."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import engine_server
import pytest
import torch
from engine_server import DIM, GROUP, HEADS, LAYERS, PAGE_SIZE, PAGES, EngineServer, engine_class
from sglang.srt.layers.radix_attention import RadixAttention
from triton_cases import relative_error

from rheo_kernels.cuda import estimate as cuda_estimate
from rheo_kernels.cuda.offload import Costs
from rheo_kernels.reference import block_keys, block_values
from rheo_kernels.types import KVScales
from rheo_kernels.types.estimates import PAGES_PER_BLOCK
from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_sglang.backend import engine_inputs
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.costs import ALL_FETCHED
from rheo_sglang.decode.cuda_attention import CudaAttention
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.scoring import EstimateScoring
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.selection import EstimatingSummary

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = [torch.float32, torch.bfloat16]
"""On a GPU the first is attended in Triton and the second in CUDA C++."""
COSTS = Costs(5.0, 1.0, 0.0, 0.5, 1.2, 0.1)
"""By which either way has a part of the misses."""


class GraphedServer(EngineServer):
    """Captures every shape of the step once, and replays it from then on."""

    def run_layers(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        graphs = self.__dict__.setdefault("graphs", {})
        key = (q.shape[1], self.engine.variant)
        if key not in graphs:
            super().run_layers(q, k, v, out)
            static = [tensor.clone() for tensor in (q, k, v, out)]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                super().run_layers(*static)
            graphs[key] = graph, static
            return
        graph, static = graphs[key]
        for mine, theirs in zip(static, (q, k, v), strict=False):
            mine.copy_(theirs)
        graph.replay()
        out.copy_(static[3])


def run(
    config: RheoConfig,
    frames: int,
    lengths: dict[int, int],
    steps: int,
    device: torch.device,
    served_by: type[EngineServer] = EngineServer,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
) -> EngineServer:
    """Decode with both and compare every step; the last request leaves after half of the steps.

    Pages are ``stored`` in 8 bits, if given.
    """
    noise = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise)

    storage: dict[str, Any] = {"dtype": stored or dtype, "compute_dtype": dtype}
    if stored is not None:
        storage["scales"] = [KVScales(0.75, 2.5), KVScales(1.0, 0.3)]
    expected = EngineServer(config, frames, torch.device("cpu"), False, **storage)
    actual = served_by(config, frames, device, True, **storage)
    content = normal(*expected.host.shape)
    summaries = normal(*expected.table.summaries.shape)
    summaries[..., 1, :] = summaries[..., 0, :] + summaries[..., 1, :].abs()
    free = torch.randperm(PAGES - 1, generator=noise) + 1
    pages_of = {}
    for row, length in lengths.items():
        count = -(-(length + steps) // PAGE_SIZE)
        pages_of[row], free = free[:count].tolist(), free[count:]
        for server in (expected, actual):
            server.prefill(row, pages_of[row], content, summaries)
    running = dict(lengths)
    for number in range(steps):
        if number == steps // 2:
            row, _ = running.popitem()
            for server in (expected, actual):
                server.table.release(torch.tensor(pages_of[row], device=server.device))
        running = {row: length + 1 for row, length in running.items()}
        batch = len(running) + 1
        inputs = [normal(LAYERS, batch, heads, DIM) for heads in (HEADS * GROUP, HEADS, HEADS)]
        theirs, mine = expected.step(running, *inputs), actual.step(running, *inputs)
        live = len(running)
        assert relative_error(mine[:, :live], theirs[:, :live]) < TOLERANCE[dtype], f"step {number}"
        assert torch.equal(mine[:, live:], torch.zeros_like(mine[:, live:])), "a padded row has an output"
        actual.table.check()
    actual.engine.settle()
    expected.table.settle()
    for row, length in running.items():
        whole = pages_of[row][: length // PAGE_SIZE]
        if device.type == "cuda":
            torch.cuda.synchronize()
        torch.testing.assert_close(actual.host[:, whole], expected.host[:, whole], rtol=0, atol=0)
        assert not actual.table.unsaved[:, whole].any()
        described = actual.table.summaries[:, :, whole].cpu()
        torch.testing.assert_close(described, expected.table.summaries[:, :, whole], rtol=0, atol=0)
    return actual


@pytest.fixture
def attended_in_cuda(cuda_kernels: None, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two-byte KV is attended in CUDA C++ on the CPU, too; there, what misses cost is given and not measured."""
    if device == "cuda":
        return
    monkeypatch.setattr("rheo_sglang.decode.gpu_engine.make_attention", CudaAttention)
    monkeypatch.setattr("rheo_sglang.decode.hybrid_miss_path.measure_costs", lambda *measured: COSTS)
    monkeypatch.setattr("rheo_sglang.decode.hybrid_miss_path.keep_to_spare_cores", lambda threads: [])


@pytest.mark.parametrize(
    ("policy", "miss_mode"),
    [
        ("importance", "fetch"),
        ("lru", "split"),
        pytest.param("importance", "split", marks=pytest.mark.full),
        pytest.param("lfu", "fetch", marks=pytest.mark.full),
    ],
)
def test_sparse_steps_equal_the_reference(policy: str, miss_mode: str, rng: torch.Generator) -> None:
    config = RheoConfig(
        summary="bound",
        budget_ratio=0.4,
        budget_min_pages=3,
        dense_threshold=0,
        policy=policy,
        miss_mode=miss_mode,
        cpu_threads=2,
    )
    server = run(config, 7, {1: 11 * PAGE_SIZE - 3, 2: 30, 3: 6 * PAGE_SIZE - 1}, 6, rng.device)
    assert not server.engine.variant.dense
    report = server.recorder.report()
    assert report["overall"]["samples"] == (3 * 3 + 2 * 3) * LAYERS * HEADS
    assert 0 < report["overall"]["hit_rate"] < 1


@pytest.mark.parametrize(
    ("dense_pages", "miss_mode", "stored"),
    [
        (0, "split", None),
        (0, "fetch", None),
        (0, "auto", None),
        (6, "auto", None),
        (0, "auto", EIGHT_BITS),
        (6, "split", EIGHT_BITS),
    ],
)
def test_steps_in_cuda_equal_the_reference(
    dense_pages: int,
    miss_mode: str,
    stored: torch.dtype | None,
    rng: torch.Generator,
    attended_in_cuda: None,
) -> None:
    config = RheoConfig(
        summary="bound",
        budget_ratio=0.4,
        budget_min_pages=3,
        dense_threshold=dense_pages * PAGE_SIZE,
        miss_mode=miss_mode,
        cpu_threads=2,
    )
    lengths = {1: 11 * PAGE_SIZE - 3, 2: 30, 3: 6 * PAGE_SIZE - 1}
    server = run(config, 9, lengths, 6, rng.device, dtype=torch.bfloat16, stored=stored)
    assert isinstance(server.engine.attention, CudaAttention)
    report = server.engine.miss_report()
    if miss_mode != "fetch":
        assert report is not None and report["layers_with_misses"] > 0


@pytest.mark.usefixtures("attended_in_cuda")
def test_requests_that_begin_with_the_same_pages_decode_as_if_they_were_alone(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    dim, shared = 64, PAGES_PER_BLOCK
    monkeypatch.setattr(engine_server, "DIM", dim)
    monkeypatch.setattr(engine_server, "HEAD_SHAPE", HeadShape(HEADS, GROUP, dim))
    monkeypatch.setattr("rheo_kernels.cuda.estimate.unsupported", lambda *shape: None)
    config = RheoConfig(budget_ratio=0.4, budget_min_pages=3, dense_threshold=0, cpu_threads=1)
    lengths = {1: 11 * PAGE_SIZE - 3, 2: 30, 3: 9 * PAGE_SIZE + 1}
    pages_of = {1: [*range(1, 13)], 2: [20, 21, 22], 3: [*range(1, 1 + shared), 30, 31, 32]}
    decoded = {}
    for paired in (False, True):
        noise = torch.Generator().manual_seed(5)
        server = EngineServer(config, 30, rng.device, True, torch.bfloat16)
        summary, scoring = server.table.summary, server.engine.scoring
        assert isinstance(summary, EstimatingSummary) and isinstance(scoring, EstimateScoring)
        assert scoring.kernels is cuda_estimate and scoring.pairs_requests
        scoring.pairs_requests = paired
        content = torch.randn(server.host.shape, generator=noise)
        full = torch.full((PAGES,), PAGE_SIZE)
        folded = [
            summary.fold_chunk(block_keys(layer, PAGE_SIZE), block_values(layer, PAGE_SIZE), full)
            for layer in content.transpose(1, 2)
        ]
        for row, pages in pages_of.items():
            server.prefill(row, pages, content, torch.stack(folded))
        decoded[paired] = []
        for number in (1, 2):
            heads = HEADS * GROUP, HEADS, HEADS
            inputs = [torch.randn((LAYERS, 4, count, dim), generator=noise) for count in heads]
            running = {row: length + number for row, length in lengths.items()}
            decoded[paired].append(server.step(running, *inputs)[:, :3])
        pairs = server.engine.step.pairs
        assert (pairs is not None) == paired
    assert pairs.partner.tolist() == [2, -1, 0, -1]
    assert pairs.units.tolist() == [1, 0, 1, 0]
    assert all(torch.equal(one, other) for one, other in zip(*decoded.values(), strict=True))
    assert decoded[True][0].isfinite().all()


@pytest.mark.parametrize("miss_mode", ["auto", "split"])
def test_what_is_fetched_is_counted_where_the_cpu_attends_too(
    miss_mode: str, rng: torch.Generator, attended_in_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it where the CPU is far too slow, nothing where it is to attend all misses."""
    costs = ALL_FETCHED if miss_mode == "auto" else COSTS
    monkeypatch.setattr("rheo_sglang.decode.hybrid_miss_path.measure_costs", lambda *measured: costs)
    config = RheoConfig(
        summary="bound",
        budget_ratio=0.4,
        budget_min_pages=3,
        dense_threshold=0,
        miss_mode=miss_mode,
        cpu_threads=1,
    )
    server = run(config, 9, {1: 11 * PAGE_SIZE - 3, 2: 30}, 2, rng.device, dtype=torch.bfloat16)
    assert server.engine.miss_route == "shared"
    reading = server.engine.readings.now()
    assert reading.hits is not None
    misses = reading.hits.selected - reading.hits.hits
    assert misses > 0
    assert reading.fetched == (misses if miss_mode == "auto" else 0)


def test_steps_whose_budget_reads_scores_equal_the_reference(rng: torch.Generator) -> None:
    config = RheoConfig(
        summary="bound",
        extensions=("root_budget",),
        budget="root",
        budget_min_pages=1,
        budget_max_pages=3,
        budget_limit_ratio=0.8,
        dense_threshold=0,
    )
    server = run(config, 12, {1: 11 * PAGE_SIZE - 3, 2: 30, 3: 6 * PAGE_SIZE - 1}, 4, rng.device)
    allowed = server.engine.step.allowed
    assert 3 < int(allowed.max()) <= 10


def test_a_mixed_batch_selects_all_of_its_short_requests(rng: torch.Generator) -> None:
    config = RheoConfig(summary="bound", budget_ratio=0.25, budget_min_pages=3, dense_threshold=6 * PAGE_SIZE)
    server = run(config, 12, {1: 12 * PAGE_SIZE, 2: 5 * PAGE_SIZE - 2}, 4, rng.device)
    assert server.engine.variants[0].dense


def test_the_dense_shortcut_equals_the_reference_and_misses_come_home(rng: torch.Generator) -> None:
    config = RheoConfig(
        summary="bound", budget_ratio=0.25, budget_min_pages=3, dense_threshold=10 * PAGE_SIZE
    )
    server = run(config, 20, {1: 6 * PAGE_SIZE, 2: 5 * PAGE_SIZE - 2}, 8, rng.device)
    assert server.engine.variant.dense
    pages = [page for page in range(1, PAGES) if bool(server.table.unsaved[0, page])]
    assert pages, "the tail pages"
    listed = server.tokens[1, : 6 * PAGE_SIZE : PAGE_SIZE] // PAGE_SIZE
    assert (server.table.frame_of[:, :, listed.long()] >= 0).all(), "what was missed got frames"


def test_exact_attention_with_few_frames_equals_the_reference(rng: torch.Generator) -> None:
    config = RheoConfig(summary="bound", budget_ratio=1.0, dense_threshold=0)
    run(config, 5, {1: 9 * PAGE_SIZE, 2: 3 * PAGE_SIZE}, 6, rng.device)


@pytest.mark.gpu
@pytest.mark.parametrize("miss_mode", ["split", "fetch", "auto"])
@pytest.mark.parametrize("dense_pages", [0, 6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_replayed_graphs_equal_the_reference(
    dtype: torch.dtype, dense_pages: int, miss_mode: str, rng: torch.Generator
) -> None:
    config = RheoConfig(
        summary="bound",
        budget_ratio=0.4,
        budget_min_pages=3,
        dense_threshold=dense_pages * PAGE_SIZE,
        miss_mode=miss_mode,
    )
    server = run(
        config, 9, {1: 6 * PAGE_SIZE - 9, 2: 30, 3: 5 * PAGE_SIZE - 1}, 40, rng.device, GraphedServer, dtype
    )
    assert len(server.graphs) >= 2, "two batch sizes"


@pytest.mark.gpu
@pytest.mark.parametrize("miss_mode", ["split", "fetch", "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_do_not_depend_on_how_streams_are_timed(
    dtype: torch.dtype, miss_mode: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants 3 and 4: every stream is held up for a random while, before and after its work."""
    from rheo_sglang.streams import SideStream

    fork, join = SideStream.fork, SideStream.join
    draw = random.Random(7)

    def hold() -> None:
        torch.cuda._sleep(draw.choice((0, 0, 20_000, 300_000)))

    @contextlib.contextmanager
    def slow_fork(self: SideStream, starts_first: bool = False) -> Iterator[None]:
        with fork(self, starts_first):
            hold()
            yield
            hold()
        hold()

    def slow_join(self: SideStream) -> None:
        hold()
        join(self)

    monkeypatch.setattr(SideStream, "fork", slow_fork)
    monkeypatch.setattr(SideStream, "join", slow_join)
    config = RheoConfig(
        summary="bound", budget_ratio=0.4, budget_min_pages=3, dense_threshold=0, miss_mode=miss_mode
    )
    run(config, 7, {1: 11 * PAGE_SIZE - 3, 2: 30, 3: 6 * PAGE_SIZE - 1}, 40, rng.device, dtype=dtype)


def test_buffers_stay_what_captured_graphs_know_when_a_larger_batch_comes(rng: torch.Generator) -> None:
    config = RheoConfig(summary="bound", budget_ratio=0.1, dense_threshold=0, cpu_threads=1)
    server = EngineServer(config, 9, rng.device, gpu=True)
    variant = server.engine.variants[-1]
    small = server.engine.buffers(2).views(2, variant)
    server.engine.buffers(7).views(5, variant)
    again = server.engine.buffers(2).views(2, variant)
    assert again.scores.data_ptr() == small.scores.data_ptr()
    assert server.engine.buffers(3) is server.engine.buffers(7)


class Rank:
    """An engine as the backend builds it on one of two ranks that share a KV head: each has half of its group."""

    QUERIES, RANKS, TOKENS = 8, 2, 5 * PAGE_SIZE - 3

    def __init__(self, gpu: bool, device: torch.device, dtype: torch.dtype) -> None:
        config = RheoConfig(
            summary="bound", budget_ratio=0.4, budget_min_pages=3, dense_threshold=0, cpu_threads=1
        )
        self.device, self.dtype = device, dtype
        pool = RheoKVPool(
            10 * PAGE_SIZE, PAGE_SIZE, dtype, 1, DIM, LAYERS, str(device), 4, config, start_layer=0
        )
        self.queries = self.QUERIES // self.RANKS
        tokens = (PAGE_SIZE + torch.arange(10 * PAGE_SIZE, dtype=torch.int32))[None].to(device)
        runner = SimpleNamespace(
            model=torch.nn.ModuleList(
                RadixAttention(self.queries, DIM, DIM**-0.5, 1, layer) for layer in range(LAYERS)
            ),
            req_to_token_pool=SimpleNamespace(req_to_token=tokens),
            server_args=SimpleNamespace(enable_metrics=False),
            model_config=SimpleNamespace(
                context_len=8 * PAGE_SIZE,
                num_attention_heads=self.QUERIES,
                get_total_num_kv_heads=lambda: 1,
            ),
        )
        self.engine = engine_class(gpu)(engine_inputs(runner, pool))
        noise = torch.Generator().manual_seed(4)
        pool.host.copy_(torch.randn(pool.host.shape, generator=noise))
        pool.table.summaries.copy_(torch.randn(pool.table.summaries.shape, generator=noise))
        self.engine.note_prefill()

    def step(self) -> torch.Tensor:
        noise = torch.Generator().manual_seed(6)
        q, k, v = (
            torch.randn(LAYERS, 1, heads, DIM, generator=noise).to(self.device, self.dtype)
            for heads in (self.queries, 1, 1)
        )
        out = torch.empty_like(q)
        lengths = torch.tensor([self.TOKENS])
        self.engine.settle()
        self.engine.begin_step(
            torch.zeros_like(lengths).to(self.device), lengths.to(self.device), lengths, 1, ["one"]
        )
        for layer in range(LAYERS):
            self.engine.forward(layer, q[layer], k[layer], v[layer], DIM**-0.5, out[layer])
        self.engine.end_step()
        return out.float().cpu()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rank_with_half_of_a_group_attends_with_what_it_has(
    dtype: torch.dtype, rng: torch.Generator, request: pytest.FixtureRequest
) -> None:
    """The configuration says 8 query heads a KV head, the layers of this rank have 4."""
    if dtype == torch.bfloat16:
        request.getfixturevalue("attended_in_cuda")
    expected = Rank(False, torch.device("cpu"), dtype)
    actual = Rank(True, rng.device, dtype)
    assert actual.engine.heads == HeadShape(1, 4, DIM)
    assert relative_error(actual.step(), expected.step()) < TOLERANCE[dtype]
