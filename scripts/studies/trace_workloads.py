#!/usr/bin/env python3
"""Trace real sessions on a server: what every decode step selects and how it scores its pages.

    PYTHONPATH=scripts python -m studies.trace_workloads chat --page-size 32 --folder traces

Serves a model, SmolLM2 unless told otherwise, with a budget of 10 % and selection from the first token on: in bfloat16
where there is a GPU, else in fp32 on the CPU. The recorder's own hit rates and the requests' tokens are beside the
trace, in ``FOLDER/NAME.json``. One server a session; `studies.replay_workloads` replays them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.measurement import MODEL, tokenizer
from common.sglang_server import SGLangServer
from rheo_sglang.traces.writer import PART_SECONDS
from workloads.sessions import SESSIONS, Session

GPU = torch.cuda.is_available()
ON_GPU = ("--mem-fraction-static", "0.5", "--grammar-backend", "none", "--disable-prefill-cuda-graph")
ON_CPU = ("--watchdog-timeout", "3600")
"""A pass over a chunk of a long prompt may take longer than the five minutes after which SGLang ends a server."""
BUDGET = 0.1
FRAMES = 1.25
TEMPERATURE = 0.8
"""Greedy decoding of so small a model falls into loops."""
ROOM = 1024
"""Tokens of a context beside the document: questions and answers."""
SECONDS = 1800.0
"""Time for a request's answer: a prompt of 32K tokens takes minutes on a CPU."""


def arguments(page_size: int, tokens: int, dtype: str, trace: Path) -> list[str]:
    """Server arguments: a context for a session, and frames for 1.25 times what its document's pages allow to select.

    Parameters
    ----------
    page_size
        Tokens a page.
    tokens
        Of the document or the tools' outputs.
    dtype
        Of the weights and of KV, as SGLang names it.
    trace
        Folder of the trace.
    """
    pages = -(-tokens // page_size)
    context = tokens + ROOM
    config = {
        "budget_ratio": BUDGET,
        "budget_min_pages": 1,
        "dense_threshold": 0,
        "frame_pool_tokens": int(FRAMES * BUDGET * pages + 1) * page_size,
        "trace": str(trace),
    }
    return [
        *("--attention-backend", "rheo", "--page-size", str(page_size), "--dtype", dtype),
        *("--context-length", str(context), "--max-total-tokens", str(2 * context)),
        *("--max-running-requests", "2", "--random-seed", "1"),
        *(ON_GPU if GPU else ON_CPU),
        *("--rheo-config", json.dumps(config)),
    ]


def hold(server: SGLangServer, name: str, session: Session, most: int | None = None) -> list[dict[str, Any]]:
    """Hold a session; each request's prompt, tokens of the prompt, and tokens of the answer.

    Parameters
    ----------
    server
        Where.
    name
        Of the session, with which ids of its requests begin.
    session
        What to ask.
    most
        Tokens of all answers after which the session ends; None for the whole session.
    """
    held: list[dict[str, Any]] = []
    left = math.inf if most is None else most
    progress = tqdm(desc=name, unit="turn", leave=False, disable=None)
    turn = next(session)
    while True:
        answer = server.generate(
            turn.prompt,
            int(min(turn.answer_tokens, left)),
            timeout=SECONDS,
            ignore_eos=True,
            temperature=TEMPERATURE,
            request={"rid": f"{name}-{len(held) + 1}"},
        )
        tokens = answer["meta_info"]["prompt_tokens"]
        held.append({"prompt": turn.prompt, "prompt_tokens": tokens, "answer": answer["output_ids"]})
        progress.update()
        left -= len(answer["output_ids"])
        if left <= 0:
            break
        try:
            turn = session.send(answer["text"])
        except StopIteration:
            break
    progress.close()
    return held


def main() -> None:
    """Hold one session."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("session", choices=SESSIONS)
    parser.add_argument("--page-size", type=int, default=32)
    parser.add_argument(
        "--tokens", type=int, default=4096, help="tokens of the document or the tools' outputs"
    )
    parser.add_argument("--answers", type=int, help="tokens of all answers after which the session ends")
    parser.add_argument("--name", help="of the trace; SESSION-PAGE when not given")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16" if GPU else "float32",
        help="as in SGLang",
    )
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--folder", type=Path, required=True, help="where the traces go")
    options = parser.parse_args()
    encode = tokenizer(options.model).encode
    session = SESSIONS[options.session](lambda text: len(encode(text).ids), options.tokens)
    name = options.name or f"{options.session}-{options.page_size}"
    trace = options.folder / name
    with tempfile.TemporaryDirectory() as logs:
        server_arguments = arguments(options.page_size, options.tokens, options.dtype, trace)
        environment = {"OMP_NUM_THREADS": str(options.threads)}
        log = Path(logs) / "server.log"
        with SGLangServer(options.model, server_arguments, log, environment=environment, gpu=GPU) as server:
            held = hold(server, options.session, session, options.answers)
            time.sleep(PART_SECONDS + 2.0)
            state = server.server_info()["internal_states"][0]["rheo"]
    lengths = [one["prompt_tokens"] for one in held]
    document = {
        "document_tokens": options.tokens,
        "dtype": options.dtype,
        "prompt_tokens": lengths,
        "requests": held,
        "recorder": state["recorder"],
        "trace": state["trace"],
    }
    (options.folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{name}: prompts of {lengths} tokens, {state['trace']}", file=sys.stderr)


if __name__ == "__main__":
    main()
