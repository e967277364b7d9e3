"""Conversations with an OpenAI-compatible server, scored turn by turn."""

from collections.abc import Callable
from dataclasses import dataclass

import requests

from rheo_sglang.evaluation.haystack import Sample
from rheo_sglang.evaluation.tasks import recall


class CompletionClient:
    """Greedy completions over HTTP (OpenAI's ``POST /v1/completions``).

    Parameters
    ----------
    base_url
        Server address with or without the ending ``/v1``.
    model
        Model name the server knows.
    timeout
        Seconds to wait for one completion.
    """

    def __init__(self, base_url: str, model: str, timeout: float) -> None:
        self._url = base_url.rstrip("/").removesuffix("/v1") + "/v1/completions"
        self._model = model
        self._timeout = timeout

    def complete(self, prompt: str, max_tokens: int) -> tuple[str, int]:
        """Continue a prompt up to the end of the line.

        Returns
        -------
        text : str
            The continuation.
        prompt_tokens : int
            Tokens of the prompt as the server counts them.

        Raises
        ------
        requests.RequestException
            When the server cannot be reached or refuses.
        """
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stop": ["\n"],
        }
        response = requests.post(self._url, json=body, timeout=self._timeout)
        if not response.ok:
            raise requests.HTTPError(f"{self._url} answered {response.status_code}: {response.text[:300]}")
        reply = response.json()
        return reply["choices"][0]["text"], reply["usage"]["prompt_tokens"]


@dataclass(frozen=True)
class Score:
    """How one conversation went.

    Attributes
    ----------
    recall
        Mean over the turns of the share of expected items in the reply.
    exact
        Share of the turns whose reply is the expected answer, word for word.
    prompt_tokens
        Tokens of the last turn's prompt, the longest.
    """

    recall: float
    exact: float
    prompt_tokens: int


def converse(client: CompletionClient, sample: Sample, count_tokens: Callable[[str], int]) -> Score:
    """Ask a sample's questions turn after turn; the server's own replies stay in the conversation.

    Parameters
    ----------
    client
        Server.
    sample
        Document and turns.
    count_tokens
        Size of a text in tokens; bounds the length of a reply.
    """
    prompt = sample.document
    recalls, exacts, prompt_tokens = [], [], 0
    for turn in sample.turns:
        prompt += turn.question
        reply, prompt_tokens = client.complete(prompt, count_tokens(turn.answer) + 8)
        recalls.append(recall(turn, reply))
        exacts.append(reply.strip() == turn.answer.strip())
        prompt += reply + "\n"
    return Score(sum(recalls) / len(recalls), sum(exacts) / len(exacts), prompt_tokens)
