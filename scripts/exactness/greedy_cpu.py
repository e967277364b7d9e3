#!/usr/bin/env python3
"""Budget 1.0 against SGLang's torch_native backend: greedy tokens of one model, prompt by prompt.

    PYTHONPATH=scripts python -m exactness.greedy_cpu

Serves SmolLM2 in fp32 with torch_native, then with rheo at budget 1.0 and a frame pool of 10 % of the prompts' KV, for
page sizes 16 and 32 and with the radix cache on (every prompt twice, so that the second one hits) and off. Writes
``docs/benchmarks/results/exactness_cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.measurement import MODEL, text_prompts, write_result
from common.sglang_server import SGLangServer

LENGTHS = [200, 500, 1000, 1500, 2000, 2700, 3400, 4000]
FRAME_SHARE = 0.1


def answers(server: SGLangServer, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
    """Greedy continuations of all prompts, sent at once."""
    return server.generate(
        prompts, new_tokens, timeout=1800, ignore_eos=True, request={"return_logprob": True}
    )


def compare(expected: list[dict[str, Any]], got: list[dict[str, Any]]) -> dict[str, Any]:
    """Differing tokens, and the largest difference of the log-probabilities of equal ones."""
    mismatches, worst = 0, 0.0
    for one, other in zip(expected, got, strict=True):
        mismatches += sum(a != b for a, b in zip(one["output_ids"], other["output_ids"], strict=True))
        for a, b in zip(
            one["meta_info"]["output_token_logprobs"],
            other["meta_info"]["output_token_logprobs"],
            strict=True,
        ):
            if a[1] == b[1]:
                worst = max(worst, abs(a[0] - b[0]))
    return {"greedy_mismatches": mismatches, "max_logprob_difference": worst}


def attention_error(page_size: int) -> float:
    """Relative error of one decode step's attention output against float64, at SmolLM2's shape."""
    from rheo_kernels.reference import write
    from rheo_sglang.config import RheoConfig
    from rheo_sglang.decode.engine import EngineInputs
    from rheo_sglang.decode.heads import HeadShape
    from rheo_sglang.decode.reference_engine import ReferenceDecodeEngine
    from rheo_sglang.page_table import PageTable
    from rheo_sglang.pools.blocks import frame_pool, host_pool

    torch.manual_seed(page_size)
    heads, queries, dim, length = 3, 9, 64, 4000
    pages = -(-length // page_size) + 1
    config = RheoConfig(budget_ratio=1.0)
    table = PageTable(
        1, heads, dim, page_size, pages, pages // 10, "bound", "importance", torch.float32, "cpu"
    )
    host = host_pool(1, pages, heads, dim, page_size, torch.float32)
    frames = frame_pool(1, heads, pages // 10, dim, page_size, torch.float32, "cpu")
    k, v = torch.randn(2, length, heads, dim).unbind()
    slots = torch.arange(page_size, page_size + length)
    write(k[:-1], v[:-1], slots[:-1], host[0], table.summary, table.summaries[0], page_size)
    q = torch.randn(1, queries, dim)
    shape = HeadShape(heads, queries // heads, dim)
    inputs = EngineInputs(config, table, host, frames, shape, page_size, slots[None], length, None)
    engine = ReferenceDecodeEngine(inputs)
    lengths = torch.tensor([length])
    engine.begin_step(torch.tensor([0]), lengths, lengths, 1, None)
    out = torch.empty(1, queries, dim)
    # The last page's earlier tokens were written by the prefill above, the last token is the step's own.
    engine.forward(0, q, k[-1:], v[-1:], dim**-0.5, out)
    got = out.double()
    grouped = q.double().view(heads, queries // heads, dim)
    weights = (grouped @ k.double().permute(1, 2, 0) * dim**-0.5).softmax(-1)
    exact = (weights @ v.double().transpose(0, 1)).view(1, queries, dim)
    return float((got - exact).norm() / exact.norm())


def main() -> None:
    """Run all servers one after the other and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint directory")
    parser.add_argument("--new-tokens", type=int, default=48, help="tokens to generate per prompt")
    arguments = parser.parse_args()

    prompts = text_prompts(arguments.model, LENGTHS)
    total = sum(LENGTHS) + len(LENGTHS) * arguments.new_tokens
    common = ["--max-total-tokens", "24576", "--max-running-requests", "16", "--context-length", "8192"]
    config = json.dumps({"budget_ratio": 1.0, "frame_pool_tokens": int(total * FRAME_SHARE)})
    runs = {"torch_native": [*common, "--attention-backend", "torch_native"]}
    for page_size in (16, 32):
        rheo = [
            *common,
            "--attention-backend",
            "rheo",
            "--page-size",
            str(page_size),
            "--rheo-config",
            config,
        ]
        runs[f"rheo_page{page_size}_radix_on"] = rheo
        runs[f"rheo_page{page_size}_radix_off"] = [*rheo, "--disable-radix-cache"]

    expected: list[dict[str, Any]] = []
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, command in tqdm(runs.items(), desc="servers"):
            with SGLangServer(arguments.model, command, Path(scratch) / f"{name}.log") as server:
                first = answers(server, prompts, arguments.new_tokens)
                if name == "torch_native":
                    expected = first
                    continue
                cases[name] = compare(expected, first)
                if name.endswith("radix_on"):
                    second = answers(server, prompts, arguments.new_tokens)
                    cases[name + "_cached"] = compare(expected, second) | {
                        "cached_tokens": sum(answer["meta_info"]["cached_tokens"] for answer in second)
                    }
                state = server.server_info()["internal_states"][0]["rheo"]
                cases[name]["page_hit_rate"] = state["recorder"]["overall"]["page_hit_rate"]
                tqdm.write(f"{name}: {cases[name]}")
    metrics = {
        "prompts": len(prompts),
        "prompt_tokens": LENGTHS,
        "new_tokens": arguments.new_tokens,
        "frame_pool_tokens": int(total * FRAME_SHARE),
        "greedy_mismatches": sum(case["greedy_mismatches"] for case in cases.values()),
        "max_logprob_difference": max(case["max_logprob_difference"] for case in cases.values()),
        "max_rel_err_fp32": max(attention_error(page_size) for page_size in (16, 32, 64)),
        "cases": cases,
    }
    print(write_result("exactness_cpu", metrics))


if __name__ == "__main__":
    main()
