"""The synthetic page scores: the kernel, the process, the statistics it is fitted by, and the fit itself."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from locality.process import Locality, components, head_normals, synthetic_scores
from locality.replay import hit_rate
from locality.statistics import never_selected, reselection, retrieved_pages
from locality.trace import Trace, page_scores

GPU = torch.cuda.is_available()
LOCALITY = Locality(0.9, (0.2, 0.15, 0.3), (1, 4, 32), 0.5)
RESULT = Path(__file__).parent.parent / "docs" / "benchmarks" / "results" / "locality_smollm2.json"


@pytest.fixture
def locality_scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    if not GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    from locality.kernel import locality_scores

    return locality_scores


@pytest.fixture
def device() -> str:
    return "cuda" if GPU else "cpu"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "locality", [LOCALITY, Locality(0.0, (1.0, 0.5), (256, 3), 0.0), Locality(1.0, (), (), 1.0)], ids=str
)
@pytest.mark.parametrize(("layer", "step"), [(0, 0), (35, 31), (1, 100_003)])
def test_kernel_equals_the_process(
    locality_scores: Callable[..., None],
    device: str,
    layer: int,
    step: int,
    locality: Locality,
    dtype: torch.dtype,
) -> None:
    counts, heads, width = [300, 0, 1, 256], 3, 310
    seeds = torch.tensor([7, 0, -5, 2**31 - 1], dtype=dtype, device=device)
    scores = torch.full((len(counts), heads, width + 9), torch.nan, device=device)[:, :, :width]
    locality_scores(
        scores,
        torch.tensor(counts, dtype=torch.int32, device=device),
        torch.tensor(step, dtype=torch.int32, device=device),
        layer,
        seeds,
        locality,
    )
    expected = synthetic_scores(width, step, layer, heads, seeds, locality)
    for request, count in enumerate(counts):
        assert torch.allclose(scores[request, :, :count], expected[request, :, :count], atol=2e-5, rtol=2e-5)
        assert scores[request, :, count:].isnan().all()


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_captured_kernel_follows_the_step(locality_scores: Callable[..., None]) -> None:
    seeds = torch.arange(8, device="cuda")
    scores = torch.empty((8, 8, 4096), device="cuda")
    counts = torch.full((8,), 4096, dtype=torch.int32, device="cuda")
    step = torch.zeros((), dtype=torch.int32, device="cuda")
    locality_scores(scores, counts, step, 2, seeds, LOCALITY)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        locality_scores(scores, counts, step, 2, seeds, LOCALITY)
        step.add_(1)
    for expected_step in range(40):
        graph.replay()
        expected = synthetic_scores(4096, expected_step, 2, 8, seeds, LOCALITY)
        assert torch.allclose(scores, expected, atol=1e-4, rtol=1e-4)


def test_components_are_independent_standard_normals() -> None:
    parts = torch.stack([components(500, 11, layer, 4, torch.arange(5), (1, 4, 32)) for layer in range(6)], 1)
    samples = parts.flatten(1)
    assert samples.mean(1).abs().max() < 0.03
    assert (samples.var(1) - 1).abs().max() < 0.05
    assert (torch.corrcoef(samples) - torch.eye(4)).abs().max() < 0.03
    quantiles = torch.quantile(samples[0], torch.tensor([0.05, 0.5, 0.95]))
    assert torch.allclose(quantiles, torch.tensor([-1.645, 0.0, 1.645]), atol=0.05)


def test_requests_layers_and_heads_differ() -> None:
    rows = torch.cat(
        [components(4000, 3, layer, 2, torch.tensor([0, 1]), (4,)).sum(0).flatten(0, 1) for layer in (0, 1)]
    )
    assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < 0.08
    assert len({round(float(z), 3) for layer in (0, 1) for z in head_normals(layer, 4, rows.device)}) == 8


@pytest.mark.parametrize("lag", [1, 2, 3, 5, 7, 8])
def test_a_component_forgets_as_its_quarter_circles_say(lag: int) -> None:
    period = 4

    def node_weights(time: int) -> np.ndarray:
        weights = np.zeros(8)
        angle = time % period * math.pi / (2 * period)
        weights[time // period : time // period + 2] = math.cos(angle), math.sin(angle)
        return weights

    expected = np.mean([node_weights(phase) @ node_weights(phase + lag) for phase in range(period)])
    now, later = (components(20_000, step, 0, 4, torch.tensor([3]), (period,))[1] for step in (40, 40 + lag))
    assert float((now * later).mean()) == pytest.approx(expected, abs=0.02)


def test_a_static_process_never_changes_its_order() -> None:
    locality = Locality(1.0, (0.0,), (1,), 0.0)
    first, later = (synthetic_scores(100, step, 4, 2, torch.tensor([9]), locality) for step in (0, 999))
    assert torch.equal(first, later)


@pytest.mark.parametrize(
    ("weights", "periods", "message"),
    [
        ((1.0,), (1, 2), "1 weights and 2 periods"),
        ((1.0,) * 5, (1,) * 5, "up to 4"),
        ((1.0,), (257,), "period of 257 steps; allowed: 1 to 256"),
        ((1.0,), (0,), "period of 0"),
    ],
)
def test_bad_parameters_are_named(weights: tuple[float, ...], periods: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Locality(1.0, weights, periods, 0.0)


def one_page_a_step(pages: list[list[int]], columns: int) -> np.ndarray:
    retrieved = np.zeros((len(pages), len(pages[0]), columns), dtype=bool)
    for cache, row in enumerate(pages):
        retrieved[cache, np.arange(len(row)), row] = True
    return retrieved


def test_lru_equals_a_list_in_order_of_use() -> None:
    pages = np.random.default_rng(0).zipf(1.3, (3, 400)).clip(max=30).tolist()
    hits = lookups = 0
    for row in pages:
        cache: OrderedDict[int, None] = OrderedDict()
        for step, page in enumerate(row):
            hits += step >= 32 and page in cache
            lookups += step >= 32
            cache[page] = cache.pop(page, None)
            if len(cache) > 3:
                cache.popitem(last=False)
    assert hit_rate(one_page_a_step(pages, 31), 3.0, "lru") == pytest.approx(hits / lookups)


def test_belady_evicts_what_is_needed_last() -> None:
    pages = [0, 1, 2] * 40
    retrieved = one_page_a_step([pages], 3)
    assert hit_rate(retrieved, 2.0, "lru") == 0
    assert hit_rate(retrieved, 2.0, "belady") == pytest.approx(0.5, abs=0.02)
    assert hit_rate(retrieved, 3.0, "lru") == 1


@pytest.mark.parametrize(("size", "policy", "message"), [(0.5, "lru", "0.5"), (1.0, "fifo", "'fifo'")])
def test_bad_caches_are_named(size: float, policy: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hit_rate(np.ones((1, 40, 2), dtype=bool), size, policy)


def test_reselection_counts_pages_that_come_back() -> None:
    retrieved = np.zeros((1, 4, 6), dtype=bool)
    for step, pages in enumerate([[0, 1], [1, 2], [2, 3], [0, 1]]):
        retrieved[0, step, pages] = True
    assert reselection(retrieved, 1) == pytest.approx(2 / 6)
    assert reselection(retrieved, 3) == 1
    assert never_selected(retrieved) == pytest.approx(2 / 6)


def test_retrieved_pages_leave_out_sink_and_window() -> None:
    scores = torch.randn(2, 3, 40)
    num_pages = torch.tensor([39, 40], dtype=torch.int32)
    scores[0, :, 39] = -torch.inf
    retrieved = retrieved_pages(scores, num_pages, 0.25, sink_pages=1, window_pages=2)
    for step, count in enumerate(num_pages.tolist()):
        for cache in range(3):
            best = scores[step, cache, 1 : count - 2].topk(10 - 3).indices + 1
            assert set(np.flatnonzero(retrieved[cache, step])) == set(best.tolist())


def test_replayed_scores_equal_scores_from_the_keys_of_their_step() -> None:
    steps, layers, heads, group, dim, page_size, total = 5, 2, 2, 3, 8, 4, 23
    keys = torch.randn(layers, heads, total, dim)
    queries = torch.randn(steps, layers, heads * group, dim)
    scores, num_pages = page_scores(Trace(queries, keys, []), page_size)
    for step in range(steps):
        tokens = total - steps + step + 1
        assert num_pages[step] == math.ceil(tokens / page_size)
        assert torch.isinf(scores[step, :, :, num_pages[step] :]).all()
        for page in range(tokens // page_size):
            part = keys[:, :, page * page_size : (page + 1) * page_size, None]
            query = queries[step].view(layers, heads, 1, group, dim)
            reach = torch.maximum(query * part.amin(2, True), query * part.amax(2, True)).sum(-1)
            expected = reach[:, :, 0].mean(-1) * dim**-0.5
            assert torch.allclose(scores[step, :, :, page], expected, atol=1e-5)


@pytest.mark.parametrize("page_size", [16, 32])
def test_the_shipped_parameters_hit_as_often_as_the_model(page_size: int) -> None:
    from locality.fit import process_scores

    metrics = json.loads(RESULT.read_text())["metrics"]
    case = metrics[f"page{page_size}"]
    pages = metrics["context_tokens"] // page_size
    num_pages = torch.full((96,), pages, dtype=torch.int32)
    locality = Locality.from_json(case["parameters"])
    scores = process_scores(num_pages, torch.tensor([77]), metrics["process_layers"], 4, locality)
    for budget in (0.05, 0.1, 0.2):
        retrieved = retrieved_pages(scores, num_pages, budget, metrics["sink_pages"], metrics["window_pages"])
        expected = case["real"][str(budget)]["hit_rate"]["lru"]["1.25"]
        assert hit_rate(retrieved, 1.25, "lru") == pytest.approx(expected, abs=0.03)
