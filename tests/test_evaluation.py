"""The evaluation: what samples contain, how replies are scored, and a run against an HTTP server."""

import json
import random
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from rheo_sglang.evaluation.haystack import Haystack, documentation_text, token_counter
from rheo_sglang.evaluation.names import NAMES, NamePool
from rheo_sglang.evaluation.recall_command import main
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


class _FindsCodes(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose model looks access codes up in the prompt."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (name,) = re.findall(r"access code for (\w+) is$", body["prompt"])
        (code, *_) = re.findall(rf"access code for {name} is (\d+)\.", body["prompt"])
        usage = {"prompt_tokens": len(body["prompt"].split())}
        reply = json.dumps({"choices": [{"text": f" {code}."}], "usage": usage}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _FindsCodes) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()


def _run(server: str, folder: Path, tokenizer: Tokenizer, tasks: str) -> int:
    tokenizer.save(str(folder / "tokenizer.json"))
    arguments = ["--base-url", server, "--model", str(folder), "--tasks", tasks, "--lengths", "512"]
    return main([*arguments, "--samples", "3", "--out", str(folder / "result.json")])


def test_run_against_a_server_scores_its_replies(server: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert _run(server, tmp_path, tokenizer, "needle,multikey,repeated") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["needle_512"] == result["metrics"]["multikey_512_exact"] == 1.0
    assert result["metrics"]["repeated_512"] == 1.0
    assert {"name", "date", "machine", "versions", "command"} <= set(result)


def test_unknown_task_and_unreachable_server_end_with_one_sentence(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("http://127.0.0.1:9", tmp_path, tokenizer, "haystack") == 1
    assert "--tasks: haystack is not one of needle" in capsys.readouterr().err
    assert _run("http://127.0.0.1:9", tmp_path, tokenizer, "needle") == 1
    assert "Connection refused" in capsys.readouterr().err
