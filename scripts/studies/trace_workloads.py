#!/usr/bin/env python3
"""Trace real sessions on a server: what every decode step selects and how it scores its pages.

    PYTHONPATH=scripts python -m studies.trace_workloads chat --page-size 32 --folder traces

Serves SmolLM2 in fp32 on the CPU with a budget of 10 %, selection from the first token on, and the recorder's own hit
rates and the requests' tokens beside the trace, in ``FOLDER/SESSION-PAGE.json``. One server a session;
`studies.replay_workloads` replays them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.measurement import MODEL, tokenizer
from common.sglang_server import SGLangServer
from rheo_sglang.traces.writer import PART_SECONDS
from workloads.sessions import SESSIONS, Session

BUDGET = 0.1
FRAMES = 1.25
TEMPERATURE = 0.8
"""Greedy decoding of so small a model falls into loops."""


def arguments(page_size: int, tokens: int, trace: Path) -> list[str]:
    """Server arguments: frames for 1.25 times what a context of ``tokens`` selects."""
    pages = -(-tokens // page_size)
    config = {
        "budget_ratio": BUDGET,
        "budget_min_pages": 1,
        "dense_threshold": 0,
        "frame_pool_tokens": int(FRAMES * BUDGET * pages + 1) * page_size,
        "trace": str(trace),
    }
    return [
        *("--attention-backend", "rheo", "--page-size", str(page_size), "--context-length", "8192"),
        *("--max-running-requests", "2", "--max-total-tokens", "16384", "--random-seed", "1"),
        *("--rheo-config", json.dumps(config)),
    ]


def hold(server: SGLangServer, name: str, session: Session) -> list[dict[str, Any]]:
    """Hold a session; each request's prompt, tokens of the prompt, and tokens of the answer."""
    held: list[dict[str, Any]] = []
    progress = tqdm(desc=name, unit="turn", leave=False, disable=None)
    turn = next(session)
    while True:
        answer = server.generate(
            turn.prompt,
            turn.answer_tokens,
            timeout=600,
            ignore_eos=True,
            temperature=TEMPERATURE,
            request={"rid": f"{name}-{len(held) + 1}"},
        )
        tokens = answer["meta_info"]["prompt_tokens"]
        held.append({"prompt": turn.prompt, "prompt_tokens": tokens, "answer": answer["output_ids"]})
        progress.update()
        try:
            turn = session.send(answer["text"])
        except StopIteration:
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
    parser.add_argument("--name", help="of the trace; SESSION-PAGE when not given")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--folder", type=Path, required=True, help="where the traces go")
    options = parser.parse_args()
    encode = tokenizer(options.model).encode
    session = SESSIONS[options.session](lambda text: len(encode(text).ids), options.tokens)
    name = options.name or f"{options.session}-{options.page_size}"
    trace = options.folder / name
    with tempfile.TemporaryDirectory() as logs:
        server_arguments = arguments(options.page_size, options.tokens, trace)
        with SGLangServer(options.model, server_arguments, Path(logs) / "server.log") as server:
            held = hold(server, options.session, session)
            time.sleep(PART_SECONDS + 2.0)
            state = server.server_info()["internal_states"][0]["rheo"]
    lengths = [one["prompt_tokens"] for one in held]
    document = {
        "prompt_tokens": lengths,
        "requests": held,
        "recorder": state["recorder"],
        "trace": state["trace"],
    }
    (options.folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{name}: prompts of {lengths} tokens, {state['trace']}", file=sys.stderr)


if __name__ == "__main__":
    main()
