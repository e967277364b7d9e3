"""Recall: what samples contain, where facts are hidden, how replies are scored."""

import random
import re

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from rheo_sglang.evaluation.conversations import whole_words
from rheo_sglang.evaluation.haystack import Haystack, documentation_text, token_counter
from rheo_sglang.evaluation.names import NAMES, NamePool
from rheo_sglang.evaluation.placement import PLACEMENTS
from rheo_sglang.evaluation.recall_tasks import RECALL_TASKS, make_conversation
from rheo_sglang.evaluation.tasks import TASKS, Turn, recall, vartrack


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Words and punctuation, one token each."""
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    return words


@pytest.fixture(scope="module")
def haystack(tokenizer: Tokenizer) -> Haystack:
    return Haystack(documentation_text(held_out=True), token_counter(tokenizer))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [1024, 8192])
def test_sample_fills_its_length_and_never_exceeds_it(
    task: str, length: int, haystack: Haystack, tokenizer: Tokenizer
) -> None:
    for seed in range(5):
        sample = haystack.sample(task, length, seed)
        text = sample.document + "\n".join(turn.question + turn.answer for turn in sample.turns)
        tokens = len(tokenizer.encode(text).ids)
        assert length - 100 < tokens <= length


@pytest.mark.parametrize("task", TASKS)
def test_every_expected_item_is_in_the_document_on_a_line_of_a_fact(task: str, haystack: Haystack) -> None:
    sample = haystack.sample(task, 2048, 3)
    lines = sample.document.splitlines(keepends=True)
    for turn in sample.turns:
        assert turn.answer.startswith(" ")
        for item in turn.expected:
            assert any(item in line and line not in haystack.lines for line in lines)


@pytest.mark.parametrize("task", TASKS)
def test_sample_is_a_function_of_task_length_and_seed(task: str, haystack: Haystack) -> None:
    assert haystack.sample(task, 1024, 7) == haystack.sample(task, 1024, 7)
    assert haystack.sample(task, 1024, 7) != haystack.sample(task, 1024, 8)


def test_vartrack_answer_is_what_executing_the_assignments_gives() -> None:
    rng = random.Random(0)
    exercise = vartrack(rng, NamePool(rng), chains=4, hops=5, asked=4)
    values: dict[str, str] = {}
    for fact in exercise.facts:
        target, source = re.fullmatch(r"VAR (\w+) = (?:VAR )?(\w+)", fact).groups()  # type: ignore[union-attr]
        values[target] = values.get(source, source)
    for turn in exercise.turns:
        (asked,) = re.findall(r"hold (\d+)\?", turn.question)
        assert list(turn.expected) == [name for name, value in values.items() if value == asked]


def test_dictionary_is_asked_after_another_question(haystack: Haystack) -> None:
    first, *later = haystack.sample("dictionary", 1024, 0).turns
    assert "ledger" not in first.question
    assert later and all("ledger" in turn.question for turn in later)


def test_repeated_asks_some_question_twice(haystack: Haystack) -> None:
    turns = [turn for seed in range(5) for turn in haystack.sample("repeated", 1024, seed).turns]
    assert len({turn.question for turn in turns}) < len(turns)


def test_held_out_documentation_shares_no_paragraph_with_the_rest() -> None:
    held_out, rest = (set(documentation_text(held_out=half).split("\n\n")) for half in (True, False))
    assert len(held_out) > 500
    assert not held_out & rest


def test_passage_longer_than_the_text_repeats_it(haystack: Haystack) -> None:
    passage = haystack.passage(2 * haystack.tokens + 100, random.Random(0))
    assert passage[: 2 * len(haystack.lines)] == 2 * haystack.lines
    assert len(passage) > 2 * len(haystack.lines)


def test_task_longer_than_the_length_is_refused(haystack: Haystack) -> None:
    with pytest.raises(ValueError, match="repeated does not fit in 64 tokens"):
        haystack.sample("repeated", 64, 0)


def test_names_are_drawn_once_and_run_out() -> None:
    names = NamePool(random.Random(0))
    assert len(set(names.draw(len(NAMES)))) == len(NAMES)
    with pytest.raises(ValueError, match="only 0 of"):
        names.draw(1)


def test_recall_counts_whole_words() -> None:
    turn = Turn("Which?", ("elm", "fox"), " elm, fox.")
    assert recall(turn, " elm, fox.") == 1.0
    assert recall(turn, " helmet and fox") == 0.5


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("task", RECALL_TASKS)
def test_conversation_fills_its_length_and_leaves_room_for_the_replies(
    task: str, chat: bool, haystack: Haystack, tokenizer: Tokenizer
) -> None:
    count = token_counter(tokenizer)
    for seed in range(3):
        made = make_conversation(haystack, count, task, 4096, seed, chat)
        assert made == make_conversation(haystack, count, task, 4096, seed, chat)
        texts = [made.document, *(question.text + question.prefix for question in made.questions)]
        replies = sum(question.max_tokens for question in made.questions)
        assert 3200 < sum(count(texts)) + (replies if chat else 0) <= 4096


@pytest.mark.parametrize("task", RECALL_TASKS)
def test_chat_gives_no_word_of_the_answer_and_plain_text_begins_it(task: str, haystack: Haystack) -> None:
    count = haystack._count_tokens
    for question in make_conversation(haystack, count, task, 4096, 0, chat=True).questions:
        assert question.prefix == "" and not set(question.expected) & set(re.findall(r"\w+", question.text))
    for question in make_conversation(haystack, count, task, 4096, 0, chat=False).questions:
        assert question.prefix.startswith("Answer: ") and question.answer.startswith(" ")
        assert whole_words(question.expected, question.answer) == 1.0


def test_embedded_facts_interrupt_a_line_and_nothing_else_is_lost(haystack: Haystack) -> None:
    facts = ("The access code for elm is 123456.", "The access code for fox is 654321.")
    lines = haystack.passage(2000, random.Random(1))
    for seed in range(20):
        rng = random.Random(seed)
        placed = "".join(PLACEMENTS["sentences"](facts, 2000, rng).place(list(lines), rng))
        for name in ("elm", "fox"):
            (line,) = [line for line in placed.splitlines() if f"code for {name}" in line]
            assert re.search(rf"\w \(the access code for {name} is \d+\) .*\S", line)
        assert re.sub(r" \(the access code for \w+ is \d+\)", "", placed) == "".join(lines)


def test_buried_facts_are_remarks_among_many_rows_that_say_nothing(haystack: Haystack) -> None:
    made = make_conversation(haystack, haystack._count_tokens, "buried", 8192, 0, chat=True)
    rows = [line for line in made.document.splitlines() if line.startswith("| ") and "inspected" in line]
    remarks = [row.split("|")[4].strip() for row in rows]
    assert len(rows) > 40 and remarks.count("no remark") == len(rows) - 4
    (expected,) = made.questions[0].expected
    assert any(remark.endswith(expected) for remark in remarks)
    table = made.document[made.document.index("| record") :]
    assert table.startswith("| record | result | state | remark |\n|---|---|---|---|\n" + rows[0])
