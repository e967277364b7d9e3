"""`rheo eval`'s commands against an HTTP server: formats, scores, prompts in files, comparisons and refusals."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from rheo_sglang.evaluation import compare_command, divergence_command, recall_command, ruler_command
from rheo_sglang.evaluation.conversations import Conversation, ConversationSet, Question, substrings
from rheo_sglang.evaluation.intervals import paired_difference, score_half_width
from rheo_sglang.evaluation.measured import Measured, Prompts, score_figures
from rheo_sglang.evaluation.server import ConversationServer

SURE, UNSURE = math.log(0.81), math.log(0.25)


class FindsCodes(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose model looks access codes up, but for every `forgets`-th one."""

    forgets = 0

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "finder"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages = body.get("messages", [])
        said = "\n".join(message["content"] for message in messages) if messages else body["prompt"]
        name = re.findall(r"access code for (\w+)", said)[-1]
        (code, *_) = re.findall(rf"access code for {name} is (\d+)", said)
        known = not self.forgets or int(code) % self.forgets
        begun = messages[-1]["role"] == "assistant" if messages else True
        text = f" {code if known else 0}." if begun else f"It is {code if known else 0}."
        choice: dict[str, Any] = {"message": {"content": text}} if messages else {"text": text}
        if body.get("logprobs"):
            told = [SURE if known else UNSURE, 0.0]
            choice["logprobs"] = (
                {"content": [{"token": "?", "logprob": one} for one in told]}
                if messages
                else {"token_logprobs": told}
            )
        self.answer({"choices": [choice], "usage": {"prompt_tokens": len(said.split())}})

    def answer(self, reply: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Forgets(FindsCodes):
    forgets = 3


def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def server() -> Iterator[str]:
    yield from serve(FindsCodes)


@pytest.fixture
def forgetful() -> Iterator[str]:
    yield from serve(Forgets)


@pytest.fixture(params=[False, True], ids=["plain", "chat"])
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A tokenizer of words, with a chat template or without."""
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    config = {"chat_template": "{{ messages }}"} if request.param else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def recall(checkpoint: Path, tasks: str, *options: str, samples: int = 3) -> tuple[int, dict[str, Any]]:
    out = checkpoint / "result.json"
    out.unlink(missing_ok=True)
    common = [
        "--tokenizer",
        str(checkpoint),
        "--tasks",
        tasks,
        "--lengths",
        "1024",
        "--samples",
        str(samples),
    ]
    status = recall_command.main([*common, "--out", str(out), *options])
    return status, json.loads(out.read_text()) if out.exists() else {}


def test_a_server_that_finds_everything_scores_one_and_its_interval_is_not_empty(
    server: str, checkpoint: Path
) -> None:
    status, result = recall(checkpoint, "needle,multikey,repeated,embedded,buried", "--url", f"{server}/v1")
    assert status == 0
    metrics = result["metrics"]
    for name in ("needle_1k", "repeated_1k", "embedded_1k", "buried_1k", "mean_1k", "mean"):
        assert metrics[name] == 1.0 and 0 < metrics[f"{name}_ci"] < 0.5
    assert metrics["mean_ci"] < metrics["needle_1k_ci"]
    assert {"name", "date", "machine", "versions", "command", "prompts", "scores"} <= set(result)
    assert metrics.get("multikey_1k_exact") == (None if result["chat"] else 1.0)


def test_the_first_answer_of_a_conversation_stays_in_it(server: str, checkpoint: Path) -> None:
    asked = ConversationSet.load(saved(checkpoint, "repeated"), "recall").conversations[0]
    assert (
        len(asked.questions) == 8
        and asked.document
        and not asked.questions[1].text.startswith(asked.document)
    )


def saved(checkpoint: Path, tasks: str, samples: int = 3) -> Path:
    file = checkpoint / "prompts.jsonl.xz"
    assert recall(checkpoint, tasks, "--save-prompts", str(file), samples=samples)[0] == 0
    return file


def test_prompts_from_a_file_give_the_scores_of_prompts_made_anew(server: str, checkpoint: Path) -> None:
    file = saved(checkpoint, "multikey,buried")
    again = recall(checkpoint, "needle", "--url", server, "--prompts", str(file))[1]
    anew = recall(checkpoint, "multikey,buried", "--url", server)[1]
    assert (again["scores"], again["prompts"], again["chat"]) == (
        anew["scores"],
        anew["prompts"],
        anew["chat"],
    )
    part = ConversationSet.load(file, "recall").first(2)
    assert [one.seed for one in part.conversations] == [0, 1, 0, 1]


def test_a_comparison_is_of_the_same_prompts_live_or_kept(
    server: str, forgetful: str, checkpoint: Path
) -> None:
    live = recall(checkpoint, "multikey", "--url", forgetful, "--compare", server, samples=30)[1]["metrics"]
    kept = checkpoint / "kept.json"
    assert recall(checkpoint, "multikey", "--url", server, "--out", str(kept), samples=30)[0] == 0
    later = recall(checkpoint, "multikey", "--url", forgetful, "--compare", str(kept), samples=30)[1][
        "metrics"
    ]
    assert live["mean_difference"] == later["mean_difference"] == pytest.approx(live["mean"] - 1.0, abs=1e-4)
    assert -0.6 < live["mean_difference"] < -0.1 and 0 < live["mean_difference_ci"] < 0.3


def test_an_earlier_run_of_other_prompts_is_refused(
    server: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = checkpoint / "kept.json"
    assert recall(checkpoint, "needle", "--url", server, "--out", str(kept))[0] == 0
    assert recall(checkpoint, "multikey", "--url", server, "--compare", str(kept))[0] == 1
    assert "kept.json is of other prompts" in capsys.readouterr().err


def test_prompts_of_another_suite_and_a_missing_tokenizer_end_with_one_sentence(
    checkpoint: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(checkpoint, "needle")
    capsys.readouterr()
    assert ruler_command.main(["--url", server, "--prompts", str(file)]) == 1
    assert "holds prompts of 'recall', not of 'ruler'" in capsys.readouterr().err
    assert recall(checkpoint, "needle", "--url", server, "--tokenizer", str(checkpoint / "none"))[0] == 1
    assert "no tokenizer.json for" in capsys.readouterr().err


class NoSuchServer(BaseHTTPRequestHandler):
    """Answers as a web server does that has none of this."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the terminal for the tests."""


@pytest.fixture
def web_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), NoSuchServer) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:9", "no server listens at http://127.0.0.1:9 (connection refused)"),
        ("http://no-such-host.invalid:1", "the host of http://no-such-host.invalid:1 is not known"),
        ("nonsense", "'nonsense' is not supported as a server's address; allowed: http://HOST:PORT"),
        ("http://[::1", "'http://[::1' is not supported as a server's address"),
    ],
)
@pytest.mark.parametrize("command", [recall_command, divergence_command, compare_command])
def test_a_server_that_cannot_be_asked_is_one_sentence(
    command: Any, url: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = [] if command is recall_command else ["--dense-url", url]
    assert command.main(["--url", url, *dense, "--lengths", "512", "--samples", "1"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("rheo eval ") and sentence in told


def test_a_web_server_of_another_kind_is_named(web_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recall_command.main(["--url", web_server, "--lengths", "512"]) == 1
    assert (
        f"what answers at {web_server} is no such server: /v1/models gave HTTP 404" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lengths", "abc"], "--lengths: 'abc' is not supported; allowed: numbers of tokens"),
        (["--lengths", "512,"], "--lengths: '512,' is not supported"),
        (["--samples", "0"], "--samples: '0' is not supported; allowed: 1 or more"),
        (["--concurrency", "-1"], "--concurrency: '-1' is not supported"),
        (["--timeout", "nan"], "--timeout: 'nan' is not supported; allowed: seconds"),
        (["--tasks", "haystack"], "--tasks: 'haystack' is not one of needle"),
        (["--prompts", "/no/such/file"], "--prompts: /no/such/file: no such file or folder"),
    ],
)
def test_a_bad_argument_is_told_before_any_server_is_asked(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        recall_command.main(["--url", "http://127.0.0.1:9", *arguments])
    assert sentence in capsys.readouterr().err


def test_ruler_prompts_from_a_file_continue_the_given_words(server: str, checkpoint: Path) -> None:
    question = Question("The access code for elm is 17. Which?", "The access code for elm is", 8, ("17",))
    conversations = [Conversation("niah", 4096, seed, "", (question,)) for seed in range(4)]
    file = checkpoint / "ruler.jsonl.gz"
    ConversationSet("ruler", True, conversations).save(file)
    out = checkpoint / "ruler.json"
    assert ruler_command.main(["--url", server, "--prompts", str(file), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["metrics"]["niah_4k"] == 1.0


def test_what_a_server_said_survives_its_folder_and_other_prompts_are_refused(tmp_path: Path) -> None:
    question = Question("Which?", "", 8, ("elm",))
    conversations = [Conversation("niah", 8192, seed, "", (question,)) for seed in range(4)]
    prompts = Prompts(conversations={"ruler": ConversationSet("ruler", True, conversations)})
    prompts.save(tmp_path)
    assert Prompts.load(tmp_path) == prompts
    dense = Measured(scores={"ruler": {one.key: 1.0 for one in conversations}})
    other = Measured(
        scores={"ruler": {one.key: float(one.seed % 2) for one in conversations}},
        confidences={"ruler": {one.key: 0.25 * one.seed for one in conversations}},
    )
    other.save(tmp_path / "other", prompts)
    assert Measured.load(tmp_path / "other", prompts) == other
    Measured().save(tmp_path / "other", prompts)
    assert Measured.load(tmp_path / "other", prompts) == other
    figures = score_figures(prompts, other, dense)
    assert figures["ruler"] == figures["ruler_8k"] == 0.5 and figures["ruler_difference"] == -0.5
    fewer = Prompts(conversations={"ruler": prompts.conversations["ruler"].first(2)})
    with pytest.raises(ValueError, match="other prompts of ruler"):
        Measured.load(tmp_path / "other", fewer)


@pytest.mark.parametrize("chat", [False, True])
def test_replies_carry_the_probability_of_their_tokens_where_it_was_asked_for(
    forgetful: str, chat: bool
) -> None:
    question = Question("The access code for elm is 17. Which?", "The access code for elm is", 8, ("17",))
    plain = ConversationServer(forgetful).reply([], question, (), chat)
    told = ConversationServer(forgetful, log_probabilities=True).reply([], question, (), chat)
    assert plain.log_probabilities == () and told.log_probabilities == (SURE, 0.0)
    assert (plain.text, plain.prompt_tokens) == (told.text, told.prompt_tokens)


@pytest.mark.parametrize("chat", [False, True])
def test_a_confidence_is_the_geometric_mean_over_all_tokens_of_a_conversation(
    forgetful: str, chat: bool
) -> None:
    known, unknown = (
        Question(
            f"The access code for {name} is {code}. Which?", f"The access code for {name} is", 8, (code,)
        )
        for name, code in (("elm", "17"), ("fox", "18"))
    )
    conversations = [
        Conversation("niah", 4096, seed, "", questions)
        for seed, questions in enumerate([(known,), (unknown,), (known, unknown)])
    ]
    prompts = Prompts(conversations={"ruler": ConversationSet("ruler", chat, conversations)})
    measured = Measured()
    measured.run("ruler", prompts, forgetful, concurrency=2)
    assert list(measured.scores["ruler"].values()) == [1.0, 0.0, 0.5]
    assert list(measured.confidences["ruler"].values()) == pytest.approx([0.9, 0.5, math.sqrt(0.45)])


def test_substrings_ignore_case() -> None:
    assert substrings(("Elm", "fox"), "the ELM") == 0.5


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    import random

    rng = random.Random(0)
    single = paired = 0
    for _ in range(2000):
        dense = [float(rng.random() < 0.7) for _ in range(100)]
        other = [score if rng.random() < 0.9 else float(rng.random() < 0.3) for score in dense]
        truth = 0.1 * (0.3 - 0.7)
        difference, half = paired_difference(other, dense)
        paired += abs(difference - truth) <= half
        single += abs(sum(dense) / 100 - 0.7) <= score_half_width(dense)
    assert 0.93 < single / 2000 < 0.98 and 0.93 < paired / 2000 < 0.99


def test_a_paired_difference_of_two_points_is_visible_where_few_prompts_differ() -> None:
    dense = [1.0] * 1000
    other = [0.0] * 20 + [1.0] * 980
    difference, half = paired_difference(other, dense)
    assert difference == pytest.approx(-0.02) and half < 0.012
    unpaired = score_half_width([1.0] * 600 + [0.0] * 400)
    assert unpaired > 2 * half
