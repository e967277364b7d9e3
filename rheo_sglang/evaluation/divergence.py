"""Divergence of a server from a dense one: KL and agreement of next-token distributions over the same forced text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import requests
from tqdm import tqdm

from rheo_sglang.evaluation.forcing import FORCED, SPARE, processor_text, recover
from rheo_sglang.evaluation.http import ask
from rheo_sglang.evaluation.intervals import NORMAL_95
from rheo_sglang.evaluation.prompt_files import read_lines, write_lines
from rheo_sglang.evaluation.texts import CHARACTERS_PER_TOKEN, passage

TOP = 256
"""Tokens of each distribution that are compared one by one; the others are compared together."""


@dataclass(frozen=True)
class Prompt:
    """One text to be continued.

    Attributes
    ----------
    kind, seed
        See `rheo_sglang.evaluation.texts.passage`.
    tokens
        Of the prompt.
    forced
        That follow it.
    answer
        How many of the forced ones, the last, are an answer that the prompt holds.
    """

    kind: str
    seed: int
    tokens: list[int]
    forced: list[int]
    answer: int = 0

    @property
    def key(self) -> str:
        """Names it among those of its suite."""
        return f"{self.kind}/{len(self.tokens)}/{self.seed}"

    @property
    def digest(self) -> str:
        """Names prompt and continuation, so that distributions of other text are never compared."""
        return hashlib.sha256(repr((self.tokens, self.forced)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Steps:
    """A server's next-token distributions over one prompt's continuation, the first decode step on.

    Attributes
    ----------
    digest
        The prompt's.
    distributions
        Log-probabilities by token, the `TOP` greatest and the forced token's, of every step.
    forced
        Tokens of the text, one a step.
    """

    digest: str
    distributions: list[dict[int, float]]
    forced: list[int]

    def to_json(self) -> dict[str, Any]:
        """As plain data; `from_json` takes it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Steps:
        """From what `to_json` gave, keys of objects being text in JSON."""
        steps = [{int(token): value for token, value in step.items()} for step in data["distributions"]]
        return cls(data["digest"], steps, data["forced"])


class ForcedDecoder:
    """An SGLang server that decodes given text and reports its log-probabilities.

    Parameters
    ----------
    url
        The server's address. It must run with ``--enable-custom-logit-processor``.
    timeout
        Seconds to wait for one reply.
    api_key
        Sent as a bearer token.

    Raises
    ------
    requests.RequestException
        From every method, when the server cannot be reached or refuses; the message is meant for the user.
    """

    def __init__(self, url: str, timeout: float = 600.0, api_key: str | None = None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._processor = processor_text()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text by the server's own tokenizer."""
        body = {"model": "default", "prompt": text, "add_special_tokens": False}
        return list(self._post("/tokenize", body)["tokens"])

    def prompt(self, kind: str, length: int, steps: int, seed: int) -> Prompt:
        """A text of ``length`` tokens; see `cut_prompt`."""
        return cut_prompt(self.encode, kind, length, steps, seed)

    def decode(self, prompt: Prompt) -> Steps:
        """Decode a prompt's continuation. The first token comes from the prefill and is left out."""
        spare = spare_token(prompt)
        body = {
            "input_ids": prompt.tokens,
            "sampling_params": {
                "max_new_tokens": len(prompt.forced),
                "temperature": 0.0,
                "ignore_eos": True,
                "custom_params": {FORCED: prompt.forced, SPARE: spare},
            },
            "custom_logit_processor": self._processor,
            "return_logprob": True,
            "top_logprobs_num": TOP,
            "token_ids_logprob": [spare],
        }
        reply = self._post("/generate", body)
        meta = reply["meta_info"]
        distributions = []
        for taken, top, (asked,), forced in zip(
            meta["output_token_logprobs"],
            meta["output_top_logprobs"],
            meta["output_token_ids_logprobs"],
            prompt.forced,
            strict=True,
        ):
            if taken[1] != forced:
                raise requests.RequestException(
                    f"{self._url} decoded token {taken[1]} where {forced} was forced; is rheo-sglang installed there?"
                )
            reported = {token: value for value, token, *_ in top} | {forced: taken[0], spare: asked[0]}
            distributions.append(recover(reported, forced, spare))
        return Steps(prompt.digest, distributions[1:], prompt.forced[1:])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return ask(self._url, path, body, self._headers, self._timeout)


def cut_prompt(encode: Callable[[str], list[int]], kind: str, length: int, steps: int, seed: int) -> Prompt:
    """A text of ``length`` tokens, and the ``steps + 1`` that follow."""
    tokens = encode(passage(kind, (length + steps + 1) * CHARACTERS_PER_TOKEN, seed))
    return Prompt(kind, seed, tokens[:length], tokens[length : length + steps + 1])


def save_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write a file of prompts; `load_prompts` reads it."""
    write_lines(path, {"suite": "divergence"}, (asdict(prompt) for prompt in prompts))


def load_prompts(path: Path) -> list[Prompt]:
    """Read what `save_prompts` wrote."""
    return [Prompt(**record) for record in read_lines(path, "divergence")[1]]


def decode_all(
    decoder: ForcedDecoder, prompts: Sequence[Prompt], concurrency: int, what: str
) -> dict[str, Steps]:
    """Every prompt's steps by its key, several prompts under way at a time, with progress."""
    with ThreadPoolExecutor(concurrency) as pool:
        found = pool.map(decoder.decode, prompts)
        with tqdm(found, total=len(prompts), desc=what, unit="prompt") as bar:
            return dict(zip((prompt.key for prompt in prompts), bar, strict=True))


def save_steps(path: Path, steps: Mapping[str, Steps]) -> None:
    """Write distributions; `load_steps` reads them."""
    about = ({"key": key, **one.to_json()} for key, one in steps.items())
    write_lines(path, {"suite": "dense distributions"}, about)


def load_steps(path: Path, prompts: Sequence[Prompt]) -> dict[str, Steps]:
    """Distributions of these prompts from what `save_steps` wrote.

    Raises
    ------
    ValueError
        If the file lacks a prompt.
    """
    records = read_lines(path, "dense distributions")[1]
    kept = {record.pop("key"): Steps.from_json(record) for record in records}
    for prompt in prompts:
        if prompt.key not in kept:
            length = len(prompt.tokens)
            raise ValueError(f"{path} lacks {prompt.kind} of {length} tokens with seed {prompt.seed}")
    return {prompt.key: kept[prompt.key] for prompt in prompts}


def spare_token(prompt: Prompt) -> int:
    """A token that the text does not use: the greatest below those it does use, where rare tokens are."""
    used = {*prompt.tokens, *prompt.forced}
    return next(token for token in range(max(used), -1, -1) if token not in used)


@dataclass(frozen=True)
class Divergence:
    """How far one prompt's distributions are from the dense ones, means over its steps.

    Attributes
    ----------
    kl
        Kullback-Leibler divergence from the dense distribution, nats. Tokens that are not among the greatest of both
        are compared as one: a lower bound, and close where those hold most of the mass.
    same_top
        Share of the steps with the dense distribution's most probable token on top.
    loss, dense_loss
        Negative log-likelihood of the text's own tokens, nats a token.
    """

    kl: float
    same_top: float
    loss: float
    dense_loss: float


def step_divergence(dense: dict[int, float], other: dict[int, float]) -> float:
    """KL of one step, from log-probabilities of the most probable tokens; see `Divergence`."""
    shared = dense.keys() & other.keys()
    kl = sum(math.exp(dense[token]) * (dense[token] - other[token]) for token in shared)
    rest = max(1.0 - sum(math.exp(dense[token]) for token in shared), 0.0)
    other_rest = max(1.0 - sum(math.exp(other[token]) for token in shared), 1e-9)
    return kl + (rest * math.log(rest / other_rest) if rest > 0 else 0.0)


def compare(dense: Steps, other: Steps) -> Divergence:
    """Divergence of one prompt's steps.

    Raises
    ------
    ValueError
        If they are not of the same text.
    """
    if dense.digest != other.digest:
        raise ValueError(f"the distributions are of other text: {other.digest}, dense {dense.digest}")
    pairs = list(zip(dense.distributions, other.distributions, dense.forced, strict=True))
    return Divergence(
        fmean(step_divergence(one, two) for one, two, _ in pairs),
        fmean(max(one, key=one.__getitem__) == max(two, key=two.__getitem__) for one, two, _ in pairs),
        fmean(-two[token] for _, two, token in pairs),
        fmean(-one[token] for one, _, token in pairs),
    )


def answered(prompt: Prompt, steps: Steps) -> bool:
    """Whether every token of a prompt's answer was the most probable one where it is due."""
    due = zip(steps.distributions[-prompt.answer :], steps.forced[-prompt.answer :], strict=True)
    return all(max(distribution, key=distribution.__getitem__) == token for distribution, token in due)


def interval(values: Sequence[float]) -> float:
    """Half of the mean's 95 % confidence interval over independent values (normal approximation); NaN of one value."""
    return NORMAL_95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
