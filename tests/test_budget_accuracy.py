"""What is said of answers under a budget: differences from dense, silent failures, how confidence tells failures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.budget_accuracy import failures, figures, separation, tasks
from common.measurement import measured_where
from rheo_sglang.evaluation.conversations import Conversation, ConversationSet, Question
from rheo_sglang.evaluation.divergence import Prompt, Steps
from rheo_sglang.evaluation.measured import Measured, Prompts

QUESTION = Question("Which?", "", 8, ("elm",))
KEYS = [f"buried/8192/{seed}" for seed in range(4)]


def asked() -> Prompts:
    conversations = [Conversation("buried", 8192, seed, "", (QUESTION,)) for seed in range(4)]
    late = [Prompt("late", seed, [seed] * 8192, [3, 4, 5], 1) for seed in range(2)]
    return Prompts(late=late, conversations={"recall": ConversationSet("recall", True, conversations)})


def said(scores: list[float], confidences: list[float], late: list[bool] | None = None) -> Measured:
    found = Measured(
        scores={"recall": dict(zip(KEYS, scores, strict=True))},
        confidences={"recall": dict(zip(KEYS, confidences, strict=True))},
    )
    if late is not None:
        found.forced["late"] = {
            one.key: Steps(one.digest, [{4: -0.1}, {5: -0.1, 6: -0.05 if not right else -3.0}], [4, 5])
            for one, right in zip(asked().late, late, strict=True)
        }
    return found


DENSE = said([1.0, 1.0, 1.0, 0.0], [0.9, 0.8, 0.95, 0.99])
"""Right answers have 0.9 in the middle; a wrong one with more does not raise that."""


@pytest.mark.parametrize(("confidence", "silent"), [(0.89, 0), (0.9, 1), (0.97, 1)])
def test_a_failure_is_silent_from_the_middle_of_the_dense_confidences_on(
    confidence: float, silent: int
) -> None:
    found = failures("x", said([0.5, 1.0, 1.0, 0.0], [confidence, 0.8, 0.9, 0.99]), DENSE)
    assert (found["failures_x"], found["silent_failures_x"]) == (1, silent)


def test_only_answers_that_dense_attention_has_are_failures() -> None:
    found = failures("x", said([1.0, 1.0, 1.0, 0.0], [0.1, 0.1, 0.1, 0.99]), DENSE)
    assert found == {"failures_x": 0, "silent_failures_x": 0, "failure_auc_x": None, "flagged_x": 0.0}


def test_confidence_tells_failures_from_right_answers_and_not_from_answers_wrong_anyway() -> None:
    found = failures("x", said([0.0, 1.0, 1.0, 0.0], [0.7, 0.6, 0.9, 0.1]), DENSE)
    assert (found["failure_auc_x"], found["flagged_x"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("right", "wrong", "chance"),
    [([0.9, 0.8], [0.1], 1.0), ([0.1], [0.9, 0.8], 0.0), ([0.5], [0.5], 0.5), ([0.4, 0.6], [0.5], 0.5)],
)
def test_separation_is_the_chance_of_more_confidence(
    right: list[float], wrong: list[float], chance: float
) -> None:
    assert separation(right, wrong) == chance
    assert separation(right, []) is separation([], wrong) is None


def test_figures_are_in_points_of_the_same_prompts() -> None:
    ours = said([0.0, 1.0, 1.0, 0.0], [0.5, 0.8, 0.9, 0.99], late=[True, False])
    dense = said([1.0, 1.0, 1.0, 0.0], [0.9, 0.8, 0.95, 0.99], late=[True, True])
    found = figures("x", asked(), ours, dense)
    assert (found["x_accuracy"], found["x_accuracy_difference"]) == (50.0, -25.0)
    assert found["adversarial_x"] == 50.0
    assert found["adversarial_x_difference"] == pytest.approx(-100 * 2 / 6, abs=0.01)
    assert found["tasks_x"] == tasks(asked(), ours) == {"buried 8k": 50.0, "late 8k": 50.0}
    assert found["confidence_x"]["right"] == pytest.approx(0.85)
    assert "x_kl" not in found and not math.isnan(found["x_accuracy_ci"])
    assert not {"failures_dense", "silent_failures_dense"} & set(figures("dense", asked(), dense, dense))


def test_what_is_computed_later_names_the_machine_that_measured(tmp_path: Path) -> None:
    about = {"date": "2026-01-02", "machine": "one GPU", "versions": {"sglang": "1"}, "metrics": {"a": 1}}
    (tmp_path / "measured.json").write_text(json.dumps(about))
    here = {"name": "x", "date": "2026-03-04", "machine": "none", "versions": {}, "metrics": {"b": 2}}
    assert measured_where(here, tmp_path / "measured.json") == {
        **here,
        **{key: about[key] for key in ("date", "machine", "versions")},
    }
