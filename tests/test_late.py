"""Late answers: each is in the text, ends what is decoded, and comes late; shares count whole answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rheo_sglang.evaluation.checkpoint_tokenizer import load_tokenizer
from rheo_sglang.evaluation.divergence import Prompt, Steps, answered
from rheo_sglang.evaluation.late import BEFORE, PLACEMENTS, late_prompts
from rheo_sglang.evaluation.measured import FORCED_SUITES, Measured, Prompts, late_figures

TOKENIZER = str(Path(__file__).parent.parent / "models" / "rheo-reference")
LENGTHS = [1024, 4096]
SAMPLES = 8


@pytest.fixture(scope="module")
def made() -> list[Prompt]:
    return late_prompts(TOKENIZER, LENGTHS, SAMPLES, seed=3)


@pytest.fixture(scope="module")
def texts(made: list[Prompt]) -> list[tuple[str, str, str]]:
    """Document, what is decoded before the answer, and the answer."""
    tokenizer = load_tokenizer(TOKENIZER)
    parts = ((one.tokens, one.forced[: -one.answer], one.forced[-one.answer :]) for one in made)
    return [tuple(tokenizer.decode(part) for part in found) for found in parts]


def test_a_text_fills_its_length_and_never_exceeds_it(made: list[Prompt]) -> None:
    assert [one.seed for one in made] == [*range(3, 3 + SAMPLES)] * len(LENGTHS)
    for i, prompt in enumerate(made):
        length = LENGTHS[i // SAMPLES]
        assert length - 100 < len(prompt.tokens) <= length


def test_the_answer_is_a_code_of_the_text_that_the_words_before_it_ask_for(
    texts: list[tuple[str, str, str]],
) -> None:
    for document, before, answer in texts:
        name = before.rsplit("access code for ", 1)[1].split(" is")[0]
        assert answer.strip().isdigit() and answer.strip() not in before
        assert f"access code for {name} is {answer.strip()}" in document


def test_at_least_as_many_tokens_as_promised_are_decoded_before_an_answer_and_ask_for_nothing(
    made: list[Prompt], texts: list[tuple[str, str, str]]
) -> None:
    for prompt, (_, before, _) in zip(made, texts, strict=True):
        assert BEFORE <= len(prompt.forced) - prompt.answer < 2 * BEFORE
        assert "access code" not in before.rsplit("\n", 1)[0]


def test_facts_are_hidden_in_every_placement_by_turns(texts: list[tuple[str, str, str]]) -> None:
    in_tables = ["| record |" in document for document, _, _ in texts]
    assert PLACEMENTS == ("lines", "table")
    assert in_tables == [seed % 2 == 1 for seed in range(3, 3 + SAMPLES)] * len(LENGTHS)


def test_prompts_are_a_function_of_length_and_seed(made: list[Prompt]) -> None:
    assert late_prompts(TOKENIZER, LENGTHS[:1], 2, seed=4) == made[1:3]
    assert len({one.key for one in made}) == len({one.digest for one in made}) == len(made)


def test_a_length_without_room_for_the_facts_is_refused() -> None:
    with pytest.raises(ValueError, match="late does not fit in 64 tokens"):
        late_prompts(TOKENIZER, [64], 1, 0)


def steps_of(prompt: Prompt, wrong: int | None = None) -> Steps:
    """Distributions that have every forced token on top but for one, counted from the end."""
    forced = prompt.forced[1:]
    found = [{token: math.log(0.6), token + 1: math.log(0.4)} for token in forced]
    if wrong is not None:
        token = forced[-wrong]
        found[-wrong] = {token: math.log(0.4), token + 1: math.log(0.6)}
    return Steps(prompt.digest, found, forced)


@pytest.mark.parametrize(("wrong", "right"), [(None, True), (1, False), (3, False), (4, True)])
def test_an_answer_is_right_if_each_of_its_tokens_is_most_probable_and_no_other_counts(
    wrong: int | None, right: bool
) -> None:
    prompt = Prompt("late", 0, [1, 2], [3, 4, 5, 6, 7, 8], answer=3)
    assert answered(prompt, steps_of(prompt, wrong)) is right


def few(kind: str, answer: int) -> list[Prompt]:
    return [Prompt(kind, seed, [seed] * 16, [3, 4, 5, 6 + seed], answer) for seed in range(4)]


def test_forced_suites_and_confidences_survive_their_folder(tmp_path: Path) -> None:
    prompts = Prompts(few("code", 0), late=few("late", 2))
    prompts.save(tmp_path)
    assert Prompts.load(tmp_path) == prompts
    assert tuple(prompts.suites) == FORCED_SUITES
    assert Prompts.load(tmp_path, ["late"]) == Prompts(late=prompts.late)
    steps = {suite: {one.key: steps_of(one) for one in texts} for suite, texts in prompts.forced.items()}
    Measured({"divergence": steps["divergence"]}).save(tmp_path / "server", prompts)
    Measured({"late": steps["late"]}).save(tmp_path / "server", prompts)
    found = Measured.load(tmp_path / "server", prompts)
    assert found == Measured(steps) and found.suites == list(FORCED_SUITES)
    assert Measured.load(tmp_path / "server", Prompts(late=prompts.late)).steps == {}
    with pytest.raises(ValueError, match="has no prompts of recall"):
        Prompts.load(tmp_path, ["recall"])


def test_late_figures_are_shares_of_answers_and_their_difference_from_dense() -> None:
    prompts = Prompts(late=few("late", 2))
    dense = Measured({"late": {one.key: steps_of(one) for one in prompts.late}})
    ours = Measured({"late": {one.key: steps_of(one, 1 if one.seed else None) for one in prompts.late}})
    assert late_figures(prompts, dense)["late"] == 1.0
    found = late_figures(prompts, ours, dense)
    assert (found["late"], found["late_difference"]) == (0.25, -0.75)
    assert found["late_ci"] > 0 and found["late_difference_ci"] > 0
    assert "late_difference" not in late_figures(prompts, ours)
    assert late_figures(prompts, Measured()) == {}
