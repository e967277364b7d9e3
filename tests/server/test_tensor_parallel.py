"""Two ranks select what one rank selects, each for its own KV heads, and say the same tokens."""

from __future__ import annotations

import pytest
import torch

PROMPT_LENGTHS = (150, 1100)
NEW_TOKENS = 16
SPARSE = {
    "calibrate": True,
    "budget_ratio": 0.25,
    "budget_min_pages": 4,
    "dense_threshold": 0,
    "frame_pool_tokens": 512,
}


def prompts() -> list[list[int]]:
    """Random token ids, the same in every run."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(3, 256, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@pytest.mark.newest
def test_two_ranks_say_the_tokens_of_one_and_hit_the_same_pages(serve):
    told = {}
    for ranks in (1, 2):
        server = serve("tiny-llama-group4", rheo_config=SPARSE, ranks=ranks)
        answers = [server.generate(prompt, NEW_TOKENS, ignore_eos=True) for prompt in prompts()]
        recorder = server.rheo_state()["recorder"]
        reports = [(entry["iterations"], entry["per_head"][0]) for entry in recorder["requests"]]
        assert len(recorder["overall"]["per_head"]) == 2 // ranks
        told[ranks] = ([answer["output_ids"] for answer in answers], reports)
        server.stop()
    assert told[1] == told[2]
