"""Layer-ahead prediction: the projected queries, the residents it is held against, the shares, and the arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from locality.ahead import PREDICTORS, TRUE, AheadRecorder, forecast, project
from locality.replay import policy_worths, residents

PROMPT, CONTINUATION, STEPS = list(range(3, 40)), [5, 1, 7, 2, 9, 4], 5


def checkpoint(folder: Path, architecture: str, silent: tuple[str, ...]) -> Path:
    """A tiny model of random weights in which the projections named by `silent` are zero."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5)
            elif any(part in name for part in silent):
                weight.zero_()
            else:
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
@pytest.mark.parametrize(
    ("silent", "exact"),
    [
        ((), ()),
        (("down_proj",), ("before_mlp",)),
        (("down_proj", "o_proj"), PREDICTORS),
    ],
)
def test_a_prediction_is_exact_where_nothing_is_added_after_it(
    tmp_path: Path, architecture: str, silent: tuple[str, ...], exact: tuple[str, ...]
) -> None:
    recorder = AheadRecorder(checkpoint(tmp_path, architecture, silent))
    traces = recorder.decode(PROMPT, STEPS, CONTINUATION)
    true = traces[TRUE]
    assert true.queries.shape == (STEPS, 2, 4, 16)
    assert true.keys.shape == (2, 2, len(PROMPT) + STEPS, 16)
    for kind in PREDICTORS:
        close = torch.allclose(traces[kind].queries, true.queries, atol=1e-5)
        assert close == (kind in exact), kind


def test_the_state_that_enters_a_layer_projects_to_its_queries(tmp_path: Path) -> None:
    recorder = AheadRecorder(checkpoint(tmp_path, "Qwen3", ()))
    entering: list[torch.Tensor] = []
    recorder.model.model.layers[2].register_forward_pre_hook(
        lambda _, arguments: entering.append(arguments[0][0])
    )
    true = recorder.decode(PROMPT, STEPS, CONTINUATION)[TRUE]
    positions = torch.arange(len(PROMPT), len(PROMPT) + STEPS)
    found = project(recorder.model, 2, torch.cat(entering[1:]), positions)
    assert torch.allclose(found, true.queries[:, 1], atol=1e-5)


def test_traces_of_a_second_prompt_hold_nothing_of_the_first(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "Llama", ())
    recorder = AheadRecorder(folder)
    recorder.decode(PROMPT[::-1], 3, CONTINUATION)
    again = recorder.decode(PROMPT, STEPS, CONTINUATION)
    fresh = AheadRecorder(folder).decode(PROMPT, STEPS, CONTINUATION)
    for kind in (TRUE, *PREDICTORS):
        assert torch.equal(again[kind].queries, fresh[kind].queries)


def selections(seed: int, shape: tuple[int, int, int], count: int) -> np.ndarray:
    order = np.random.default_rng(seed).random(shape).argsort(2)
    return order < count


def test_residents_are_the_last_selection_and_the_worthiest_of_the_rest() -> None:
    caches, steps, columns, count, frames = 3, 30, 20, 4, 6
    retrieved = selections(1, (caches, steps, columns), count)
    worths = np.random.default_rng(2).random((steps, caches, columns))
    found = residents(retrieved, frames / count, iter(worths))
    for cache in range(caches):
        held: set[int] = set()
        for step in range(steps):
            assert set(np.flatnonzero(found[cache, step])) == held
            wanted = set(np.flatnonzero(retrieved[cache, step]))
            worth = worths[step, cache]
            rest = sorted(held - wanted, key=lambda page, worth=worth: -worth[page])
            held = wanted | set(rest[: frames - count])


def test_importance_averages_ranks() -> None:
    scores = torch.tensor([[[3.0, 1.0, 2.0, -torch.inf]], [[1.0, 2.0, 4.0, 3.0]]])
    num_pages = torch.tensor([3, 4], dtype=torch.int32)
    nothing = np.zeros((1, 2, 4), dtype=bool)
    first, second = (
        worth.copy()[0] for worth in policy_worths("importance", nothing, scores, num_pages, 0.5)
    )
    assert first == pytest.approx([0.5, 1 / 6, 1 / 3, 0])
    assert second == pytest.approx([0.25 + 0.125, 1 / 12 + 0.25, 1 / 6 + 0.5, 0.375])


def test_a_forecast_counts_misses_hits_and_waste() -> None:
    pages = np.eye(10, dtype=bool)
    retrieved, resident = pages[:5].any(0), pages[[0, 1, 7]].any(0)
    predicted = pages[[0, 2, 3, 7, 8]].any(0)
    found = forecast(retrieved, predicted, resident)
    assert found == pytest.approx(
        {
            "hit_rate": 2 / 5,
            "hit_rate_ahead": 4 / 5,
            "miss_recall": 2 / 3,
            "vain_per_useful": 1 / 2,
            "fetched_per_selected": 3 / 5,
        }
    )


def test_a_forecast_without_a_predicted_miss_is_refused() -> None:
    pages = np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match="0 of 1 misses"):
        forecast(pages[0], pages[1], pages[2])


@pytest.fixture
def render() -> Any:
    pytest.importorskip("matplotlib")
    from rendering import layer_ahead

    return layer_ahead


def test_a_transfer_that_fits_is_hidden_and_the_rest_is_waited_for(render: Any) -> None:
    layer = render.Layer(misses_us=100, attend_us=20, select_us=10, predict_us=15, stolen_us=5)
    figures = {"miss_recall": 0.6, "vain_per_useful": 1.0}
    assert layer.plain_us == render.OTHER_US + 110
    saved, ahead = layer.ahead_us("layer_input", figures)
    assert (saved, ahead) == (pytest.approx(60), pytest.approx(render.OTHER_US + 10 + 40))
    late = render.Layer(misses_us=1000, attend_us=20, select_us=10, predict_us=15, stolen_us=5)
    saved, _ = late.ahead_us("layer_input", figures)
    assert saved == pytest.approx(render.OTHER_US / 2)
    saved, ahead = late.ahead_us("before_mlp", figures)
    assert saved == pytest.approx(late.window_us("before_mlp") / 2)
    assert ahead == pytest.approx(render.OTHER_US + 10 + 1000 - saved + 5)


def test_without_misses_a_prediction_only_costs(render: Any) -> None:
    layer = render.Layer(misses_us=0, attend_us=20, select_us=10, predict_us=15, stolen_us=5)
    for kind in render.PREDICTORS:
        _, ahead = layer.ahead_us(kind, {"miss_recall": 0.7, "vain_per_useful": 0.5})
        assert ahead == pytest.approx(layer.plain_us + 5)
