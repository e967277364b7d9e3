"""engine_benchmark: what benchmarks of a whole engine share: its arguments, a timed answer, and a kept result."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.measurement import gpu_in_words, keep_result, result_document

CHUNK_TOKENS = 8192
LEAST_TOKEN, TOKENS = 1000, 100000
FLUSH_SECONDS = 30.0


def engine_arguments(model: Path, context: int) -> dict[str, Any]:
    """Arguments of ``sglang.Engine`` that are the same whatever is compared: random weights, one request at a time.

    Parameters
    ----------
    model
        Folder of a configuration without weights.
    context
        Most tokens of a request.
    """
    return {
        "model_path": str(model),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "grammar_backend": "none",
        "cuda_graph_bs_decode": [1],
        "mem_fraction_static": 0.88,
        "context_length": context,
        "chunked_prefill_size": CHUNK_TOKENS,
        "disable_prefill_cuda_graph": True,
        "max_running_requests": 4,
        "log_level": "info",
    }


def random_prompt(name: str, tokens: int) -> list[int]:
    """Random token ids, the same for the same name; of two names, not even the beginnings are equal in practice."""
    source = random.Random(name)
    return [source.randrange(LEAST_TOKEN, TOKENS) for _ in range(tokens)]


@dataclass(frozen=True)
class Answer:
    """When the tokens of one answer arrived.

    Attributes
    ----------
    arrivals_s
        Seconds from sending the prompt, one for each token.
    meta
        SGLang's ``meta_info`` of the whole answer.
    """

    arrivals_s: list[float]
    meta: dict[str, Any]

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token."""
        return self.arrivals_s[0]

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed."""
        return int(self.meta["cached_tokens"])

    def gaps_ms(self, counted: int) -> list[float]:
        """The last ``counted`` gaps between tokens, in milliseconds."""
        return [1e3 * (after - before) for before, after in pairwise(self.arrivals_s[-counted - 1 :])]

    def tpot_ms(self, counted: int) -> float:
        """Median of the last ``counted`` gaps."""
        return statistics.median(self.gaps_ms(counted))


def answer(engine: Any, ids: list[int], rid: str, tokens: int) -> Answer:
    """Send one prompt, and wait until ``tokens`` tokens have arrived."""
    arrivals: list[float] = []
    meta: dict[str, Any] = {}

    async def stream() -> None:
        sampling = {"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True}
        start = time.perf_counter()
        async for part in await engine.async_generate(
            input_ids=ids, sampling_params=sampling, rid=rid, stream=True
        ):
            arrivals.append(time.perf_counter() - start)
            meta.update(part["meta_info"])

    engine.loop.run_until_complete(stream())
    return Answer(arrivals, meta)


def flush(engine: Any) -> None:
    """Empty the prefix cache; an engine refuses while anything is under way.

    Raises
    ------
    RuntimeError
        If it still refuses after `FLUSH_SECONDS`.
    """
    end = time.monotonic() + FLUSH_SECONDS
    while not engine.flush_cache().success:
        if time.monotonic() > end:
            raise RuntimeError(f"the engine did not flush its cache within {FLUSH_SECONDS:.0f} s")
        time.sleep(0.2)


def keep(found: dict[str, Any], path: Path) -> None:
    """Hand what was found so far to the process that started this one; it sees it with the next line of output."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(found))
    fresh.replace(path)


def run_kept(
    command: list[str],
    environment: dict[str, str],
    kept: Path,
    found: Callable[[dict[str, Any]], None],
    line: Callable[[str], None] | None = None,
) -> int:
    """Run a process, pass its output on, and learn what it found as soon as it did.

    Parameters
    ----------
    command, environment
        Of the process.
    kept
        File that `keep` writes.
    found
        Told the file's content whenever it has changed.
    line
        Told every line of the output.

    Returns
    -------
    int
        Exit status.
    """
    seen = 0

    def look() -> None:
        nonlocal seen
        changed = kept.stat().st_mtime_ns if kept.exists() else 0
        if changed != seen:
            seen = changed
            found(json.loads(kept.read_text()))

    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            sys.stdout.write(text)
            sys.stdout.flush()
            if line is not None:
                line(text)
            look()
    look()
    return process.returncode


class ResultFile:
    """A result that is written anew whenever something was found.

    Parameters
    ----------
    name
        Of the result.
    path
        JSON file.
    machine
        In words.
    onto
        An earlier result of the same name, of which everything is kept that is not measured again.

    Raises
    ------
    ValueError
        If the earlier result is another one, or of another GPU.
    """

    def __init__(self, name: str, path: Path, machine: str, onto: Path | None = None) -> None:
        self.name = name
        self.path = path
        self.machine = machine
        self.metrics: dict[str, Any] = {}
        self.commands: list[str] = []
        if onto is None:
            return
        earlier = json.loads(onto.read_text())
        for what, theirs, ours in (
            ("result", earlier["name"], name),
            ("GPU", gpu_of(earlier["machine"]), gpu_of(machine)),
        ):
            if theirs != ours:
                raise ValueError(
                    f"--onto: {what} {theirs!r} of {onto.name} is not supported; allowed: {ours!r}"
                )
        self.metrics = earlier["metrics"]
        self.commands = earlier["command"].split("; ")

    def write(self, keys: dict[str, Any]) -> None:
        """Write all metrics, with ``keys`` first."""
        document = result_document(self.name, {**keys, **self.metrics, **keys}, self.machine)
        document["command"] = "; ".join([*self.commands, document["command"]])
        keep_result(self.path, document)


def result_parser(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's parser with the options that say where its result goes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--onto", type=Path, help="earlier result of such a GPU, whose other figures are kept"
    )
    return parser


def open_result(parser: argparse.ArgumentParser, arguments: argparse.Namespace, name: str) -> ResultFile:
    """The result that `result_parser`'s options name; ends the program with one sentence if they do not fit."""
    if arguments.out is None:
        parser.error("--out is needed: the JSON file to write")
    try:
        return ResultFile(name, arguments.out, gpu_in_words(), arguments.onto)
    except ValueError as error:
        parser.error(str(error))


def gpu_of(machine: str) -> str:
    """The GPU, of a machine in words."""
    return machine.split(",")[0]
