"""The offline study of summaries: what is stored and rebuilt, what it costs, and what selections are judged by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selection.judge import KINDS, JudgedLayer, judge, page_bytes
from selection.layer import Layer
from selection.low_rank import low_rank
from selection.recording import Recorder
from selection.rounding import hadamard, symmetric
from selection.summaries import SUMMARIES
from selection.tables import Cell, Found, by_head, by_layer, metrics_of

HEADS, STEPS, GROUP, DIM, LENGTH = 2, 4, 3, 32, 256


def random_layer(seed: int = 0, key_scale: float = 1.0) -> Layer:
    """A layer whose neighbouring keys are alike."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    keys = normal(HEADS, LENGTH // 8, DIM).repeat_interleave(8, 1) + 0.5 * normal(HEADS, LENGTH, DIM)
    keys = torch.cat([keys, normal(HEADS, STEPS, DIM)], 1) * key_scale
    values = normal(HEADS, LENGTH + STEPS, DIM)
    return Layer(2 * normal(HEADS, STEPS, GROUP, DIM), keys, values, LENGTH, DIM**-0.5)


def test_a_rotation_keeps_dot_products() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 5, 64, generator=draw)
    turn = hadamard(64)
    torch.testing.assert_close((one @ turn) @ (other @ turn).T, one @ other.T, rtol=1e-5, atol=1e-4)
    assert turn.abs().eq(1 / 8).all()


def test_rotated_rows_lose_less_to_one_large_dimension() -> None:
    rows = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    rows[:, 3] += 20.0
    turn = hadamard(64)
    plain = (symmetric(rows, 4) - rows).square().mean()
    assert (symmetric(rows @ turn, 4) @ turn.T - rows).square().mean() < 0.5 * plain


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_keys_of_low_rank_are_rebuilt(rank: int) -> None:
    draw = torch.Generator().manual_seed(rank)
    keys = torch.randn(2, 3, 16, rank, generator=draw) @ torch.randn(2, 3, rank, 64, generator=draw)
    distance = (low_rank(keys, rank) - keys).norm(dim=(-2, -1)) / keys.norm(dim=(-2, -1))
    assert distance.max() < 0.05  # the mean is one more direction


def test_more_directions_rebuild_more() -> None:
    keys = torch.randn(2, 3, 16, 64, generator=torch.Generator().manual_seed(0))
    errors = [(low_rank(keys, rank) - keys).square().mean().item() for rank in (1, 2, 4, 15)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize(
    ("kind", "dim", "page_size", "expected"),
    [
        ("bound", 64, 32, 256),
        ("mean", 64, 32, 128 + 33),
        ("subcentroids4", 64, 32, 8 * 32 + 64 + 12 + 32),  # the width of the served layout
        ("rows4-bf16", 64, 32, 8 * 128 + 33),
        ("rows4-rotated", 64, 32, 8 * 34 + 33),
        ("rows4-rotated-page", 64, 32, 8 * 34 + 66 + 33),
        ("clusters4", 64, 32, 364 + 8),
        ("outlier4", 64, 32, 8 * 32 + 64 + 12 + 32),
        ("rank2", 64, 32, 66 + 2 * (66 + 34) + 33),
        ("rank2", 64, 16, 66 + 2 * (66 + 18) + 33),
        ("oracle", 64, 32, None),
    ],
)
def test_bytes_of_a_page(kind: str, dim: int, page_size: int, expected: int | None) -> None:
    assert page_bytes(kind, dim, page_size) == expected


@pytest.mark.parametrize("row_tokens", [2, 4, 8])
def test_a_key_far_from_its_page_has_a_row_of_its_own(row_tokens: int) -> None:
    keys = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    keys[:, :, 9] += 30.0
    found = SUMMARIES[f"outlier{row_tokens}"].summarise(keys)
    assert found.counts is not None
    rows = 32 // row_tokens
    assert (found.counts[..., 0] == 1).all()
    assert (found.counts.sum(-1) == 32).all()
    assert found.counts[..., 1:].amax() - found.counts[..., 1:].amin() <= 1
    assert found.rows.shape[2] == rows
    torch.testing.assert_close(found.rows[:, :, 0], keys[:, :, 9], rtol=0.1, atol=1.5)


@pytest.mark.parametrize("kind", SUMMARIES)
def test_pages_of_equal_keys_are_estimated_exactly(kind: str) -> None:
    """Every kind stands for a page by a few keys: where all its keys are one, nothing but rounding is left."""
    layer = random_layer()
    keys = layer.keys[:, ::16].repeat_interleave(16, 1)
    keys = torch.cat([keys, keys[:, :STEPS]], 1)
    values = torch.cat([layer.values, layer.values[:, :STEPS]], 1)
    whole = JudgedLayer(Layer(layer.by_head(layer.flat), keys, values, LENGTH, 1.0), 16)
    scores = whole.scores(kind)
    assert scores.lse is not None
    assert (scores.lse - whole.lse).abs().max() < 1.0
    assert (scores.lse - whole.lse).abs().median() < 0.15


def test_outputs_of_all_pages_are_dense_attention() -> None:
    for kind, _, found in judge(random_layer(), 16, list(KINDS), [1.0]):
        assert found["mass"].min() > 1 - 1e-5, kind
        assert found["error"].max() < 1e-5, kind


def test_the_oracle_covers_most_and_has_no_bias() -> None:
    found = {kind: one for kind, _, one in judge(random_layer(), 16, list(KINDS), [0.4])}
    oracle = found["oracle"]
    assert oracle["bias_median"].abs().max() < 1e-4
    for kind, one in found.items():
        by_group = one["mass"].unflatten(0, (HEADS, GROUP)).mean(1)
        assert (by_group <= oracle["mass"].unflatten(0, (HEADS, GROUP)).mean(1) + 0.03).all(), kind


def test_a_tail_of_exact_weights_and_equal_values_is_exact() -> None:
    layer = random_layer()
    values = torch.ones_like(layer.values) * 0.5
    keys = torch.cat([layer.keys, layer.keys[:, :STEPS]], 1)
    flat = Layer(layer.by_head(layer.flat), keys, torch.cat([values, values[:, :STEPS]], 1), LENGTH, 1.0)
    judged = JudgedLayer(flat, 16)
    assert judged.measure(judged.scores("oracle"), 0.3)["error_tail"].max() < 1e-2


def test_figures_are_medians_and_the_worst_head_is_named() -> None:
    cell = Cell(32, "one", 0.04)
    default = [
        {
            "mass": torch.full((2, 3), 0.9),
            "error": torch.ones(2, 3),
            "error_tail": torch.full((2, 3), 0.5),
            "bias_98": torch.full((2, 3), torch.nan),
        }
    ] * 2
    one = [{name: value.clone() for name, value in prompt.items()} for prompt in default]
    for prompt, factor in zip(one, (2.0, 8.0), strict=True):
        prompt["mass"][1, 2] = 0.1
        prompt["error_tail"] *= factor
    found: Found = {cell: one}
    figures = metrics_of(found[cell], default)
    assert figures["mass"] == 0.9
    assert figures["worst"]["mass"] == [0.1, 1, 2]
    assert figures["error_ratio"] == [4.0, 2.0, 8.0]
    assert by_layer(found[cell]) == {"mass": [0.9, 0.9], "error": [2.5, 2.5]}
    assert by_head(found[cell], "mass")[1] == [0.9, 0.9, 0.1]
    without = [prompt | {"error_tail": torch.full((2, 3), torch.nan)} for prompt in default]
    assert "error_tail" not in metrics_of(without, default)
    assert metrics_of(without, default)["error_ratio"] == [2.0, 2.0, 2.0]


def test_a_recording_is_what_the_model_attends(tmp_path: Path) -> None:
    """Attention over the recorded queries, keys and values, projected, is what the model's own layer puts out."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    recorder = Recorder(tmp_path)
    ids = torch.randint(0, 64, (44,), generator=torch.Generator().manual_seed(0)).tolist()
    outputs: list[torch.Tensor] = []
    attention = recorder.model.model.layers[1].self_attn
    attention.o_proj.register_forward_hook(lambda module, given, out: outputs.append(given[0][0]))
    recording = recorder.read("text", ids, [16, 32], 8)
    assert recording.queries.shape == (2, 2, 2, 8, 2, 8)
    for end, length in enumerate(recording.ends):
        dense = recording.layer(1, end).dense
        flat = dense.transpose(1, 2).flatten(0, 1).transpose(0, 1).flatten(1)
        torch.testing.assert_close(flat, outputs[0][length : length + 8], rtol=1e-4, atol=1e-5)
