"""Accuracy on the evaluation tasks without a server: greedy answers, one forward pass a sample.

Greedy decoding gives the expected answer if and only if each of its tokens is the most likely one after the
tokens before it, so one pass over question and expected answer decides. Turns are judged with the expected
answers of earlier turns in front of them.
"""

from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from rheo_sglang.evaluation.haystack import Haystack, Sample
from rheo_sglang.evaluation.report import metric_name
from rheo_sglang.evaluation.tasks import TASKS
from training.model import ReferenceModel
from training.rows import TEXT

_TOKENISED_TOGETHER = 32
"""Documents tokenised in parallel."""


def measure_accuracy(
    model: ReferenceModel,
    tokenizer: Tokenizer,
    haystack: Haystack,
    length: int,
    samples: int,
    tokens_per_batch: int,
    device: torch.device,
) -> dict[str, float]:
    """Share of turns answered exactly, by task.

    Parameters
    ----------
    model, tokenizer
        What is measured.
    haystack
        Held-out text.
    length
        Tokens of a conversation; divides `tokens_per_batch`.
    samples
        Samples a task.
    tokens_per_batch
        Tokens of a forward pass; the training's, so that its compiled graphs are used.
    device
        Where the model is.

    Returns
    -------
    dict of str to float
        By `metric_name`: mean over the samples of the share of turns right.
    """
    accuracy = {}
    rows = tokens_per_batch // length
    for task in tqdm(TASKS, desc=f"evaluating {length}", unit="task", mininterval=5.0):
        drawn = (haystack.sample(task, length, seed) for seed in range(samples))
        scores: list[float] = []
        while tokenised := _tokenise(tokenizer, list(islice(drawn, max(rows, _TOKENISED_TOGETHER)))):
            for first in range(0, len(tokenised), rows):
                scores += _score(model, tokenised[first : first + rows], rows, length, device)
        accuracy[metric_name(task, length)] = fmean(scores)
    return accuracy


def measure_text_loss(
    model: ReferenceModel,
    tokenizer: Tokenizer,
    text: str,
    length: int,
    tokens_per_batch: int,
    device: torch.device,
) -> float:
    """Mean cross-entropy of running text, in nats a token, over one batch of rows of `length` tokens."""
    rows = tokens_per_batch // length
    needed = rows * (length + 1)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    tokens = torch.tensor((ids * (needed // len(ids) + 1))[:needed], device=device).view(rows, length + 1)
    positions = torch.arange(length, device=device).expand(rows, -1)
    roles = torch.full((rows, length), TEXT, dtype=torch.uint8, device=device)
    by_role, _ = model.losses(tokens[:, :-1].contiguous(), positions, tokens[:, 1:].contiguous(), roles)
    return by_role[TEXT, 0].item() / by_role[TEXT, 1].item()


@dataclass(frozen=True)
class _Tokenised:
    """A conversation's tokens, and where its answers are among the predictions."""

    ids: list[int]
    answers: list[slice]


def _tokenise(tokenizer: Tokenizer, samples: list[Sample]) -> list[_Tokenised]:
    documents = tokenizer.encode_batch([sample.document for sample in samples])
    tokenised = []
    for sample, document in zip(samples, documents, strict=True):
        ids, answers = document.ids, []
        for turn in sample.turns:
            ids = ids + tokenizer.encode(turn.question, add_special_tokens=False).ids
            answer = tokenizer.encode(turn.answer + "\n", add_special_tokens=False).ids
            answers.append(slice(len(ids) - 1, len(ids) - 1 + len(answer)))
            ids = ids + answer
        tokenised.append(_Tokenised(ids, answers))
    return tokenised


def _score(
    model: ReferenceModel, batch: list[_Tokenised], rows: int, length: int, device: torch.device
) -> list[float]:
    """Share of turns right of each conversation; empty rows and the ends of short ones are padding."""
    tokens = np.zeros((rows, length + 1), dtype=np.int64)
    for row, conversation in enumerate(batch):
        tokens[row, : len(conversation.ids)] = conversation.ids
    inputs = torch.from_numpy(tokens).to(device)
    positions = torch.arange(length, device=device).expand(rows, -1)
    roles = torch.full((rows, length), TEXT, dtype=torch.uint8, device=device)
    _, correct = model.losses(inputs[:, :-1].contiguous(), positions, inputs[:, 1:].contiguous(), roles)
    right = correct.cpu().numpy()
    return [
        fmean(float(right[row, answer].all()) for answer in conversation.answers)
        for row, conversation in enumerate(batch)
    ]
