"""A real model on real text: a fifth of the pages is enough to find a fact, and a follow-up reuses the prefix."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from common.checkpoints import MODELS
from rheo_sglang.evaluation import divergence_command
from rheo_sglang.evaluation.haystack import Haystack, Sample, documentation_text

PAGE = 16
LENGTH = 1000
BUDGET = {
    "budget_ratio": 0.2,
    "budget_min_pages": 1,
    "dense_threshold": 0,
    "frame_pool_tokens": 320,
    "recorder": "mass",
}


def needles(model: str) -> list[Sample]:
    encode = Tokenizer.from_file(str(MODELS / model / "tokenizer.json")).encode_batch
    haystack = Haystack(
        documentation_text(held_out=True), lambda texts: [len(one.ids) for one in encode(list(texts))]
    )
    return [haystack.sample("needle", LENGTH, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def server(serve, smollm2):
    return serve(smollm2, page_size=PAGE, rheo_config=BUDGET, max_running_requests=1)


def test_facts_are_found_at_a_budget_of_a_fifth(server, smollm2):
    found = 0
    for sample in needles(smollm2):
        (turn,) = sample.turns
        question, answer = turn.question.split("Answer:")
        prompt = (
            f"<|im_start|>user\n{sample.document}\n{question.strip()}<|im_end|>\n"
            f"<|im_start|>assistant\n{answer.strip()}"
        )
        text = server.generate(prompt, 10)["text"]
        found += all(item in text for item in turn.expected)
    assert found >= 2
    overall = server.rheo_state()["recorder"]["overall"]
    assert overall["mass_covered"] > 0.8, "what the tail partial attends is not counted"
    assert overall["estimated_coverage"] > overall["mass_covered"] - 0.05
    assert overall["hit_rate"] > 0.8


@pytest.mark.newest
def test_an_evaluation_of_a_server_that_cannot_force_is_refused_in_one_sentence(server, capsys):
    url = ["--url", server.base_url, "--dense-url", server.base_url]
    case = ["--lengths", "64", "--kinds", "code", "--samples", "1", "--steps", "4"]
    assert divergence_command.main([*url, *case]) == 1
    assert "custom-logit-processor" in capsys.readouterr().err


def test_a_follow_up_reuses_every_full_page_of_the_conversation(server, smollm2):
    (sample, *_) = needles(smollm2)
    first = server.generate(sample.document, 24, ignore_eos=True)
    spoken = first["meta_info"]["prompt_tokens"] + first["meta_info"]["completion_tokens"] - 1
    second = server.generate(sample.document + first["text"] + "\nAnd then?", 8, ignore_eos=True)
    assert spoken // PAGE * PAGE - PAGE <= second["meta_info"]["cached_tokens"] <= spoken // PAGE * PAGE
    server.flush_cache()
    assert server.counters()["frames_used"] == 0
