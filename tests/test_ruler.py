"""RULER from lm_eval: every task is made without a network, fits, repeats by seed, and is scored as lm_eval does."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("lm_eval", reason="the extra 'ruler' is not installed")

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from rheo_sglang.evaluation.conversations import substrings
from rheo_sglang.evaluation.haystack import documentation_text, token_counter
from rheo_sglang.evaluation.ruler import REPLY_TOKENS, ROOM, RulerGenerators

LENGTH = 2048


@pytest.fixture(scope="module")
def generators() -> RulerGenerators:
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    return RulerGenerators(token_counter(words), documentation_text(held_out=True))


@pytest.mark.parametrize("task", REPLY_TOKENS)
def test_prompts_fit_and_repeat_and_fewer_are_the_first(task: str, generators: RulerGenerators) -> None:
    made = generators.conversations(task, LENGTH, 3, seed=5)
    assert generators.conversations(task, LENGTH, 2, seed=5) == made[:2]
    assert generators.conversations(task, LENGTH, 3, seed=6) != made
    for one in made:
        (question,) = one.questions
        assert sum(generators._count_tokens([question.text, question.prefix])) <= LENGTH - ROOM // 2
        assert all(item in question.text for item in question.expected)
        assert question.prefix and not re.search(r"\{|\}", question.prefix)


def test_scores_are_those_of_lm_eval() -> None:
    from lm_eval.tasks.ruler.common_utils import process_results

    expected = ["7154", "Elm", "FOX"]
    for reply in ("7154 and elm", "", "fox, ELM, 7154.", "71 54"):
        theirs = process_results({"max_length": 4096, "outputs": expected}, [reply])["4096"]
        assert substrings(expected, reply) == pytest.approx(theirs)


def test_a_length_at_which_generators_would_not_end_is_refused(generators: RulerGenerators) -> None:
    with pytest.raises(ValueError, match="needs at least 1024 tokens, not 512"):
        generators.conversations("vt", 512, 1, 0)


def test_a_tokenizer_with_which_generators_would_not_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes 67 tokens .* at most 48"):
        RulerGenerators(lambda texts: [len(text) for text in texts], "essay")
