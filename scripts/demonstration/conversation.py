"""The demonstration: a long prompt with a hidden fact, a follow-up on its prefix, the cache report."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import APIError, OpenAI
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from common.sglang_server import ServerError, SGLangServer
from convert_model import make_checkpoint
from rheo_sglang.evaluation.haystack import Haystack, Sample, documentation_text
from rheo_sglang.evaluation.names import NamePool
from rheo_sglang.evaluation.tasks import Exercise, Turn, recall
from rheo_sglang.recorder.report import render_report
from rheo_sglang.server_info import fetch_states

MODEL = "smollm2-135m-instruct"
RHEO_CONFIG = {
    "budget_ratio": 0.2,
    "budget_min_pages": 16,
    "dense_threshold": 512,
    "frame_pool_tokens": 1024,
    "host_pool_ratio": 16,
    "recorder": "mass",
}
INTRODUCTION = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n\n"
)
FOLLOW_UP = "What does the break statement do in Python? Answer in one sentence."
SEED = 7
SECONDS_BETWEEN_LINES = 15.0

console = Console(highlight=False)


@dataclass(frozen=True)
class Answer:
    """One streamed answer.

    Attributes
    ----------
    text : str
        What the model said.
    prompt_tokens, cached_tokens, completion_tokens : int
        As the server counted them; cached tokens were found in the radix cache.
    first_token_seconds, total_seconds : float
        Since the request was sent.
    """

    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_seconds: float
    total_seconds: float

    def summary(self) -> str:
        """The figures in one line."""
        return (
            f"prompt {self.prompt_tokens:,} tokens, {self.cached_tokens:,} of them cached; "
            f"first token after {self.first_token_seconds:.1f} s, "
            f"{self.completion_tokens} tokens in {self.total_seconds:.1f} s"
        )


def demonstrate(arguments: argparse.Namespace) -> None:
    """Run every step; exits with one sentence if the server does not start or refuses a request.

    Parameters
    ----------
    arguments : Namespace
        `port`, `model`, `rheo_config`, `prompt_tokens` and `max_new_tokens` of the command line.
    """
    model = arguments.model or make_checkpoint(MODEL)
    config = arguments.rheo_config or json.dumps(RHEO_CONFIG)
    log = Path(tempfile.mkdtemp(prefix="rheo-demo-")) / "server.log"
    server = SGLangServer(
        model.resolve(),
        [
            *("--attention-backend", "rheo", "--rheo-config", config),
            *("--page-size", "16", "--max-running-requests", "4", "--enable-cache-report"),
        ],
        log,
        arguments.port,
    )
    console.print(
        f"[bold]RheoServe[/bold] serves {model.name} on {server.base_url}; the server's log is {log}"
    )
    console.print(f"--attention-backend rheo --rheo-config '{config}'", markup=False)
    try:
        server.start()
        wait_with_progress(server)
        converse(server, hide_magic_number(model, arguments.prompt_tokens), arguments.max_new_tokens)
        print_cache_report(server)
    except ServerError as error:
        sys.exit(str(error))
    except APIError as error:
        sys.exit(
            f"The server refused or dropped a request: {error}\nLast lines of {log}:\n{server.log_tail()}"
        )
    finally:
        with stage("stopping the server"):
            server.stop()


@contextmanager
def stage(title: str) -> Iterator[Callable[[str], None]]:
    """Show a title and the elapsed time while the block runs; yields a function that sets a detail."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None, detail="")
        last_line = began = time.monotonic()

        def show(detail: str) -> None:
            nonlocal last_line
            progress.update(task, detail=detail)
            if not console.is_terminal and time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                console.print(f"{title}: {last_line - began:.0f} s, {detail}", markup=False)

        yield show
    console.print(f"[dim]{title}: {time.monotonic() - began:.1f} s[/dim]")


def wait_with_progress(server: SGLangServer) -> None:
    """Wait until the server is ready, showing the last line of its log."""
    with stage("starting the server") as show:
        server.wait_ready(on_wait=lambda: show(server.log_tail(1)[: console.width - 40]))


def hide_magic_number(model: Path, tokens: int) -> Sample:
    """Python's language reference, cut to about `tokens` tokens, with one magic number hidden in it."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def count_tokens(texts: Any) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]

    rng = random.Random(SEED)
    (name,) = NamePool(rng).draw(1)
    number = str(rng.randrange(1_000_000, 10_000_000))
    fact = f"One of the special magic numbers for {name} is: {number}."
    question = f"What is the special magic number for {name} mentioned in the provided text?"
    exercise = Exercise("needle", (fact,), (Turn(question, (number,), f" {number}."),))
    return Haystack(documentation_text(held_out=False), count_tokens).hide(exercise, tokens, rng)


def converse(server: SGLangServer, sample: Sample, max_new_tokens: int) -> None:
    """Ask for the hidden number, then a second question on the same prefix."""
    turn = sample.turns[0]
    messages: list[Any] = [{"role": "user", "content": f"{INTRODUCTION}{sample.document}\n{turn.question}"}]
    console.print(
        f"\nThe prompt: part of Python's language reference, with the number {turn.expected[0]} in it."
    )
    answer = ask(server, messages, turn.question, max_new_tokens)
    verdict = "right" if recall(turn, answer.text) == 1.0 else "not what the text says"
    console.print(f"[dim]{answer.summary()}; the answer is {verdict}[/dim]")

    messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": FOLLOW_UP}]
    answer = ask(server, messages, FOLLOW_UP, max_new_tokens)
    console.print(f"[dim]{answer.summary()}[/dim]\n")


def ask(server: SGLangServer, messages: list[Any], question: str, max_new_tokens: int) -> Answer:
    """Send a conversation and print the answer as it is generated."""
    console.print(f"\n[bold]Question:[/bold] {question}")
    client = OpenAI(base_url=f"{server.base_url}/v1", api_key="none", timeout=600.0, max_retries=0)
    began = time.monotonic()
    text, usage = "", None
    with stage("reading the prompt"):
        chunks = iter(
            client.chat.completions.create(
                model="default",
                messages=messages,
                max_tokens=max_new_tokens,
                temperature=0.0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        while not text and (chunk := next(chunks, None)) is not None:
            text += content(chunk)
    first_token_seconds = time.monotonic() - began
    console.print("[bold]Answer:[/bold] ", end="")
    console.print(text, end="", markup=False)
    for chunk in chunks:
        console.print(content(chunk), end="", markup=False, soft_wrap=True)
        text += content(chunk)
        usage = chunk.usage or usage
    console.print()
    if usage is None:
        raise ServerError("The server ended the stream without a usage record.")
    details = usage.prompt_tokens_details
    return Answer(
        text=text,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        completion_tokens=usage.completion_tokens,
        first_token_seconds=first_token_seconds,
        total_seconds=time.monotonic() - began,
    )


def content(chunk: Any) -> str:
    """Text that a chunk of a chat completion adds."""
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


def print_cache_report(server: SGLangServer) -> None:
    """Print what the plugin recorded: hit rates, pages and frames, cached prefixes."""
    console.print("[bold]Cache report[/bold] (`rheo report` prints it for any running server)")
    for state in fetch_states(server.base_url):
        console.print(render_report(state))
