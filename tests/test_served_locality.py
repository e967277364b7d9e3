"""Page scores that a server's trace has of its long answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from locality.served import served_scores
from rheo_sglang.traces import Trace
from rheo_sglang.traces.events import Step
from rheo_sglang.traces.writer import TraceWriter

PAGE_SIZE, LAYERS, HEADS, SELECTED = 4, 2, 2, 3
FIRST_TOKENS = {"long": 39, "short": 20}
STEPS = {"long": 9, "short": 4}
MANIFEST = {"schema": 1, "model": "model", "page_size": PAGE_SIZE, "layers": LAYERS, "kv_heads": HEADS}


def pages_of(request: str, step: int) -> int:
    return -(-(FIRST_TOKENS[request] + step) // PAGE_SIZE)


@pytest.fixture(scope="module")
def scored() -> dict[str, list[np.ndarray]]:
    """Scores ``[L, H, pages]`` of every step of two requests."""
    draw = np.random.default_rng(5)
    return {
        name: [
            draw.normal(size=(LAYERS, HEADS, pages_of(name, step))).astype(np.float32)
            for step in range(1, count + 1)
        ]
        for name, count in STEPS.items()
    }


@pytest.fixture
def trace(scored: dict[str, list[np.ndarray]], tmp_path: Path) -> Trace:
    """Both requests side by side, until the short one ends."""
    writer = TraceWriter(tmp_path / "trace", MANIFEST, 2**30)
    for index in range(STEPS["long"]):
        names = [name for name, count in STEPS.items() if index < count]
        width = max(pages_of(name, index + 1) for name in names)
        scores = np.full((LAYERS, len(names), HEADS, width), -np.inf, dtype=np.float32)
        for row, name in enumerate(names):
            one = scored[name][index]
            scores[:, row, :, : one.shape[2]] = one
        lists = np.tile(np.arange(1, width + 1, dtype=np.int32), (len(names), 1))
        tokens = np.array([FIRST_TOKENS[name] + index + 1 for name in names], dtype=np.int32)
        selected = np.argsort(-scores, axis=3)[..., :SELECTED].astype(np.int32)
        counts = np.full((LAYERS, len(names), HEADS), SELECTED, dtype=np.int32)
        step = Step(index + 1, names, tokens, lists, scores, selected, 0 * counts, counts)
        writer.offer(lambda step=step: step, 0)  # type: ignore[misc]
    writer.close()
    return Trace(tmp_path / "trace")


@pytest.mark.parametrize(
    ("steps", "expected"), [(3, ["long", "short"]), (4, ["long", "short"]), (6, ["long"])]
)
def test_scores_are_those_of_the_first_steps_of_requests_that_are_long_enough(
    trace: Trace, scored: dict[str, list[np.ndarray]], steps: int, expected: list[str]
) -> None:
    found = {request: (scores, pages) for request, scores, pages in served_scores(trace, steps)}
    assert sorted(found) == expected
    for request, (scores, num_pages) in found.items():
        assert num_pages.tolist() == [pages_of(request, step + 1) for step in range(steps)]
        assert scores.shape == (steps, LAYERS * HEADS, int(num_pages.max()))
        for step, kept in enumerate(scores):
            one = scored[request][step].reshape(LAYERS * HEADS, -1)
            torch.testing.assert_close(kept[:, : one.shape[1]], torch.from_numpy(one))
            assert torch.isinf(kept[:, one.shape[1] :]).all()
