"""Evaluation of a real server: forced text has its own log-probabilities, given words are continued."""

from __future__ import annotations

import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch

from common.checkpoints import MODELS
from rheo_sglang.evaluation import compare_command, divergence_command
from rheo_sglang.evaluation.conversations import Question
from rheo_sglang.evaluation.divergence import ForcedDecoder, Prompt, Steps, spare_token
from rheo_sglang.evaluation.forcing import FORCED, SPARE, processor_text
from rheo_sglang.evaluation.measured import Prompts
from rheo_sglang.evaluation.server import ConversationServer
from rheo_sglang.evaluation.suites import Request, make_set

STEPS = 12
FORCING = ("--enable-custom-logit-processor",)
COMMON = ["--lengths", "300", "--kinds", "documentation", "--samples", "2", "--steps", str(STEPS)]
VOCABULARY = 256
RETRACTING = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
"""SGLang's own switch for tests: retract a running request every seven steps."""
DENSE = {"budget_ratio": 1.0, "frame_pool_tokens": 2048}
SPARSE = {"budget_ratio": 0.1, "budget_min_pages": 3, "dense_threshold": 0, "frame_pool_tokens": 2048}


def measure(server, kept: Path, out: Path) -> dict:
    """Metrics of a server against kept dense distributions."""
    arguments = ["--url", server.base_url, "--dense", str(kept), "--out", str(out), *COMMON]
    assert divergence_command.main(arguments) == 0
    return json.loads(out.read_text())["metrics"]


def assert_forcing_changes_nothing(server) -> None:
    """What the server says by itself, forced, has the same log-probabilities."""
    decoder = ForcedDecoder(server.base_url)
    prompt = decoder.prompt("documentation", 200, STEPS, seed=3)
    body = {
        "input_ids": prompt.tokens,
        "sampling_params": {"max_new_tokens": STEPS + 1, "temperature": 0.0, "ignore_eos": True},
        "return_logprob": True,
        "top_logprobs_num": 8,
    }
    free = requests.post(f"{server.base_url}/generate", json=body, timeout=300).json()["meta_info"]
    said = [token for _, token, _ in free["output_token_logprobs"]]
    forced = decoder.decode(Prompt("documentation", 3, prompt.tokens, said))
    for step, top in zip(forced.distributions, free["output_top_logprobs"][1:], strict=True):
        for value, token, _ in top:
            assert step[token] == pytest.approx(value, abs=1e-3)


def assert_given_words_are_continued(server) -> None:
    """In chat, a model that is given the first words of its own answer says the others."""
    asked = ConversationServer(server.base_url)
    whole = asked.reply([], Question("Name three colours of the rainbow.", "", 16, ()), (), chat=True)
    first, rest = whole.text[: whole.text.index(" ")], whole.text[whole.text.index(" ") :]
    given = asked.reply([], Question("Name three colours of the rainbow.", first, 16, ()), (), chat=True)
    assert given.text.startswith(rest)
    assert given.prompt_tokens > whole.prompt_tokens


def save_few_prompts(server, folder: Path) -> None:
    """Two texts and a conversation, one command's work."""
    decoder = ForcedDecoder(server.base_url)
    texts = [decoder.prompt(kind, 300, STEPS, seed=5) for kind in ("code", "documentation")]
    tokenizer = ConversationServer(server.base_url).tokenizer()
    recall = make_set("recall", Request(["embedded"], [600], 1, 0, tokenizer))
    assert recall.chat
    Prompts(texts, {"recall": recall}).save(folder)


@pytest.mark.newest
def test_a_small_budget_diverges_and_the_dense_one_does_not(serve, smollm2, tmp_path):
    kept = tmp_path / "dense.jsonl.gz"
    server = serve(smollm2, rheo_config=DENSE, max_running_requests=2, arguments=FORCING)
    assert_forcing_changes_nothing(server)
    dense_url = ["--dense-url", server.base_url, "--save-dense", str(kept)]
    assert divergence_command.main([*dense_url, *COMMON]) == 0
    dense = measure(server, kept, tmp_path / "dense.json")
    assert_given_words_are_continued(server)
    save_few_prompts(server, tmp_path / "prompts")
    few = ["--prompts", str(tmp_path / "prompts")]
    answers = tmp_path / "answers"
    assert compare_command.main([*few, "--dense-url", server.base_url, "--save-dense", str(answers)]) == 0
    server.stop()

    server = serve(smollm2, rheo_config=SPARSE, page_size=16, max_running_requests=2, arguments=FORCING)
    assert_forcing_changes_nothing(server)
    sparse = measure(server, kept, tmp_path / "sparse.json")
    out = tmp_path / "compare.json"
    against = ["--dense", str(answers), "--url", server.base_url, "--out", str(out)]
    assert compare_command.main([*few, *against]) == 0
    compared = json.loads(out.read_text())["metrics"]
    server.stop()

    assert dense["kl_300"] < 1e-4
    assert dense["same_top_300"] == 1.0
    assert sparse["kl_300"] > 0.01
    assert math.isclose(sparse["dense_loss_300"], dense["loss_300"], abs_tol=1e-3)
    assert compared["kl_300"] > 0.01 and 0 < compared["kl_300_ci"] < 10
    assert compared["recall"] - compared["dense_recall"] == pytest.approx(compared["recall_difference"])


def forced_texts(spare: int) -> list[Prompt]:
    """Random prompts of one to several chunks with random continuations, which leave one token out."""
    draw = random.Random(11)
    tokens = [token for token in range(3, VOCABULARY) if token != spare]
    return [
        Prompt("random", seed, draw.choices(tokens, k=length), draw.choices(tokens, k=2 * STEPS))
        for seed, length in enumerate((40, 500, 900, 1500))
    ]


def assert_distributions_are_those_of_the_text(model: str, prompt: Prompt, steps: Steps) -> None:
    """What a dense model says after every token of the text, the spare token, whose own share is lost, left out."""
    from transformers import AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(MODELS / model, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = dense(torch.tensor([prompt.tokens + prompt.forced])).logits[0, len(prompt.tokens) : -1]
    logits[:, spare_token(prompt)] = -torch.inf
    for step, expected in zip(steps.distributions, logits.log_softmax(-1).tolist(), strict=True):
        for token, value in step.items():
            assert value == pytest.approx(expected[token], abs=1e-4)


def said(server, prompt: Prompt, steps: int) -> list[int]:
    """What a server says behind a prompt while its continuation is forced."""
    body = {
        "input_ids": prompt.tokens,
        "sampling_params": {
            "max_new_tokens": steps,
            "temperature": 0.0,
            "ignore_eos": True,
            "custom_params": {FORCED: prompt.forced, SPARE: spare_token(prompt)},
        },
        "custom_logit_processor": processor_text(),
    }
    return requests.post(f"{server.base_url}/generate", json=body, timeout=300).json()["output_ids"]


@pytest.mark.parametrize("scheduler", ["overlapped", pytest.param("plain", marks=pytest.mark.full)])
def test_prompts_of_several_chunks_and_requests_taken_back_are_forced(serve, tiny_models, scheduler):
    model = tiny_models[0]
    options = [*FORCING, "--chunked-prefill-size", "256"]
    if scheduler == "plain":
        options.append("--disable-overlap-schedule")
    server = serve(
        model, rheo_config=DENSE, page_size=16, arguments=options, environment=RETRACTING, fresh=True
    )
    texts = forced_texts(spare=VOCABULARY - 2)
    with ThreadPoolExecutor(len(texts)) as pool:
        together = list(pool.map(lambda text: said(server, text, len(text.forced)), texts))
    assert together == [text.forced for text in texts]
    assert "#retracted_reqs: 1" in server.log.read_text()

    decoder = ForcedDecoder(server.base_url)
    alone = [decoder.decode(text) for text in texts]
    text = texts[-1]
    longer = said(server, text, len(text.forced) + 4)
    own = server.generate([*text.tokens, *text.forced], 4, ignore_eos=True)["output_ids"]
    server.stop()
    assert longer == [*text.forced, *own]
    for text, steps in zip(texts, alone, strict=True):
        assert_distributions_are_those_of_the_text(model, text, steps)
