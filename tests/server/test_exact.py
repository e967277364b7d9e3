"""Invariant 1 in the server: at budget 1.0 greedy tokens are those of dense attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.checkpoints import MODELS

PROMPT_LENGTHS = (40, 333, 900, 1500)
NEW_TOKENS = 24
RETRACTING = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
"""SGLang's own switch for tests: retract a running request every seven steps."""
EXACT = {"budget_ratio": 1.0, "frame_pool_tokens": 512}
LRU = {**EXACT, "miss_mode": "fetch", "policy": "lru"}
WITH_THE_NEWEST, WITH_FULL = [pytest.mark.newest], [pytest.mark.full]
# The model of group 8 has one KV head: with two ranks each holds it, and half of its query heads.
SERVERS: list[Any] = [
    pytest.param(
        "tiny-llama-group8",
        {"arguments": ["--disable-radix-cache"], "environment": RETRACTING, "ranks": 2, "fresh": True},
    ),
    pytest.param("tiny-qwen3-moe", {"page_size": 16}),
    pytest.param("tiny-llama31-group2", {"rheo_config": LRU}, marks=WITH_THE_NEWEST),
    pytest.param(
        "tiny-qwen2-group16",
        {"page_size": 64, "arguments": ["--chunked-prefill-size", "512"]},
        marks=WITH_THE_NEWEST,
    ),
    pytest.param("tiny-llama-group1", {"page_size": 64}, marks=WITH_FULL),
    pytest.param("tiny-llama-group4", {"page_size": 16}, marks=WITH_FULL),
    pytest.param("tiny-qwen3-group4", {"rheo_config": LRU}, marks=WITH_FULL),
]


def prompts(vocabulary: int = 256) -> list[list[int]]:
    """Random token ids, the same in every run."""
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS
    ]


def dense_tokens(model: str) -> list[list[int]]:
    """Greedy continuations by transformers in fp32."""
    from transformers import AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(MODELS / model, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = dense.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
            )
        answers.append(out[0, ids.shape[1] :].tolist())
    return answers


@pytest.mark.parametrize(("model", "options"), SERVERS)
def test_budget_one_gives_the_tokens_of_dense_attention(serve, model, options):
    server = serve(model, **{"rheo_config": EXACT, **options})
    expected = dense_tokens(model)
    together = server.generate(prompts(), NEW_TOKENS, ignore_eos=True)
    assert [answer["output_ids"] for answer in together] == expected
    again = server.generate(prompts(), NEW_TOKENS, ignore_eos=True)
    assert [answer["output_ids"] for answer in again] == expected
    retractions = sum(answer["meta_info"]["num_retractions"] for answer in together)
    assert (retractions > 0) == ("environment" in options)
    cached = sum(answer["meta_info"]["cached_tokens"] for answer in again)
    assert (cached == 0) == ("--disable-radix-cache" in server.command)
    assert server.rheo_state()["recorder"]["overall"]["hit_rate"] < 1.0, "the frame pool was to be too small"
    server.stop()
