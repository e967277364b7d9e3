"""SGLang's own ``bench_serving`` over documents of real text: the dataset, and one run of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.measurement import language_reference, tokenizer
from common.sglang_server import SGLangServer

RUN_SECONDS = 3600.0
FIGURES = (
    "request_throughput",
    "output_throughput",
    "median_tpot_ms",
    "p95_tpot_ms",
    "p99_tpot_ms",
    "median_itl_ms",
    "p99_itl_ms",
    "median_ttft_ms",
    "p99_ttft_ms",
    "completed",
)
"""What is kept of a run. An ``itl`` is a gap between two pieces of a streamed answer over the tokens of the second."""


def documents(model: Path, count: int, tokens: int) -> list[str]:
    """Texts of about ``tokens`` tokens that begin at different places of real text, which goes round."""
    text = language_reference()
    per_token = 100_000 / len(tokenizer(model).encode(text[:100_000]).ids)
    length = int(tokens * per_token)
    text *= 2 + length // len(text)
    starts = [number * (len(text) // 2 - 1) // count for number in range(count)]
    return [text[start : start + length] for start in starts]


def write_dataset(texts: list[str], path: Path) -> None:
    """The texts as conversations of one turn, which ``bench_serving`` reads."""
    path.write_text(
        json.dumps([{"conversations": [{"value": text}, {"value": "An answer."}]} for text in texts])
    )


def bench(
    server: SGLangServer, dataset: Path, prompts: int, concurrency: int, answer_tokens: int
) -> dict[str, Any]:
    """Figures of one run of ``bench_serving``.

    Raises
    ------
    subprocess.CalledProcessError
        If it fails.
    RuntimeError
        If requests were left without an answer.
    """
    found = _run(server, "sglang", "sharegpt", dataset, prompts, prompts, concurrency, answer_tokens)
    return {name: round(found[name], 3) for name in FIGURES}


def bench_agents(
    server: SGLangServer, trace: Path, sessions: int, concurrency: int, answer_tokens: int
) -> dict[str, Any]:
    """Figures of the agentic loader of ``bench_serving``: every turn with the server's own answers before it.

    Parameters
    ----------
    trace
        Sessions in the loader's format.
    sessions
        How many of them.
    concurrency
        Sessions that are held at a time, each turn after turn.

    Raises
    ------
    subprocess.CalledProcessError
        If it fails.
    RuntimeError
        If turns were left without an answer.
    """
    turns = sum(map(len, json.loads(trace.read_text())["conversations"][:sessions]))
    found = _run(
        server, "sglang-oai-chat", "agentic-trace", trace, turns, sessions, concurrency, answer_tokens
    )
    return {name: round(found[name], 3) for name in FIGURES}


def _run(
    server: SGLangServer,
    backend: str,
    loader: str,
    dataset: Path,
    requests: int,
    prompts: int,
    concurrency: int,
    answer_tokens: int,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.jsonl"
        said = subprocess.run(
            [
                *(sys.executable, "-m", "sglang.bench_serving", "--backend", backend),
                *("--base-url", server.base_url, "--model", str(server.model)),
                *("--dataset-name", loader, "--dataset-path", str(dataset)),
                *("--sharegpt-output-len", str(answer_tokens), "--num-prompts", str(prompts)),
                *("--max-concurrency", str(concurrency), "--output-file", str(out)),
                *("--seed", "1", "--warmup-requests", "0", "--disable-tqdm"),
            ],
            env=server.environment,
            check=True,
            timeout=RUN_SECONDS,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        found: dict[str, Any] = json.loads(out.read_text().splitlines()[-1])
        if found["completed"] != requests:
            errors = [line for line in said.splitlines() if "error" in line.lower()][:3]
            raise RuntimeError(
                f"{found['completed']} of {requests} requests were answered; {'; '.join(errors)}"
            )
        return found
