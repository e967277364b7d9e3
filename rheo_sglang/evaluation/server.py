"""Conversations with an OpenAI-compatible server, scored turn by turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import requests
from tqdm import tqdm

from rheo_sglang.evaluation.conversations import SCORES, Conversation, ConversationSet, Question
from rheo_sglang.evaluation.http import ask


@dataclass(frozen=True)
class Reply:
    """What a server said.

    Attributes
    ----------
    text
        The reply, without the first words that were given.
    prompt_tokens
        Tokens of its prompt as the server counts them.
    log_probabilities
        Of its tokens; empty where they were not asked for.
    """

    text: str
    prompt_tokens: int
    log_probabilities: tuple[float, ...] = ()


class ConversationServer:
    """Greedy replies over HTTP: OpenAI's ``/v1/chat/completions`` for chat, else ``/v1/completions``.

    Parameters
    ----------
    url
        Server address with or without the ending ``/v1``.
    model
        Model name the server knows; the first that it lists when omitted.
    timeout
        Seconds to wait for one reply.
    api_key
        Sent as a bearer token.
    log_probabilities
        Whether to ask for those of the replies' tokens.

    Raises
    ------
    requests.RequestException
        From every method, when the server cannot be reached or refuses; the message is meant for the user.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        timeout: float = 1800.0,
        api_key: str | None = None,
        log_probabilities: bool = False,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        self._log_probabilities = log_probabilities
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        listed = self._get("/v1/models")
        try:
            return str(listed["data"][0]["id"])
        except (LookupError, TypeError):
            raise requests.RequestException(
                f"what answers at {self.url} is no such server: its /v1/models lists no model"
            ) from None

    def tokenizer(self) -> str:
        """Folder or hub name of the model's tokenizer, as SGLang tells it; other servers' model name."""
        try:
            return str(self._get("/model_info")["tokenizer_path"])
        except (requests.RequestException, KeyError):
            return self.model

    def reply(
        self,
        exchanges: Sequence[tuple[str, str]],
        question: Question,
        stop: Sequence[str],
        chat: bool,
    ) -> Reply:
        """Answer the last question of a conversation.

        Parameters
        ----------
        exchanges
            Questions before it, and their whole answers.
        question
            The question; the document is part of the first one's text.
        stop
            Texts that end the reply.
        chat
            Whether to send messages or plain text.
        """
        body = {"model": self.model, "max_tokens": question.max_tokens, "temperature": 0, "stop": [*stop]}
        if not chat:
            before = "".join(f"{asked}\n{answered}\n" for asked, answered in exchanges)
            body["prompt"] = f"{before}{question.text}\n{question.prefix}"
            if self._log_probabilities:
                body["logprobs"] = 1
            reply = self._post("/v1/completions", body)
            (choice,) = reply["choices"]
            told = (choice.get("logprobs") or {}).get("token_logprobs") or ()
            return Reply(choice["text"], reply["usage"]["prompt_tokens"], tuple(told))
        messages = []
        for asked, answered in exchanges:
            messages += [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answered},
            ]
        messages.append({"role": "user", "content": question.text})
        if question.prefix:
            messages.append({"role": "assistant", "content": question.prefix})
            body["continue_final_message"] = True
        body |= {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
        if self._log_probabilities:
            body["logprobs"] = True
        reply = self._post("/v1/chat/completions", body)
        (choice,) = reply["choices"]
        told = (choice.get("logprobs") or {}).get("content") or ()
        return Reply(
            choice["message"]["content"] or "",
            reply["usage"]["prompt_tokens"],
            tuple(token["logprob"] for token in told),
        )

    def _get(self, path: str) -> Any:
        return ask(self.url, path, headers=self._headers, timeout=self._timeout)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return ask(self.url, path, body, self._headers, self._timeout)


@dataclass(frozen=True)
class Score:
    """How one conversation went.

    Attributes
    ----------
    recall
        Mean over the turns of the share of expected items in the reply.
    exact
        Share of the turns whose reply is the expected answer, word for word; None where none is expected.
    prompt_tokens
        Tokens of the last turn's prompt, the longest.
    confidence
        Geometric mean of the probabilities of all replies' tokens; None where they were not asked for.
    """

    recall: float
    exact: float | None
    prompt_tokens: int
    confidence: float | None = None


def converse(
    server: ConversationServer,
    conversation: Conversation,
    chat: bool,
    score: Callable[[Sequence[str], str], float],
) -> Score:
    """Ask a conversation's questions turn after turn; the server's own replies stay in it."""
    exchanges: list[tuple[str, str]] = []
    recalls, exacts, prompt_tokens = [], [], 0
    log_probabilities: list[float] = []
    for question in conversation.questions:
        if not exchanges:
            question = Question(**{**vars(question), "text": conversation.document + question.text})
        reply = server.reply(exchanges, question, conversation.stop, chat)
        prompt_tokens = reply.prompt_tokens
        recalls.append(score(question.expected, reply.text))
        if question.answer:
            exacts.append(reply.text.strip() == question.answer.strip())
        log_probabilities += reply.log_probabilities
        exchanges.append((question.text, question.prefix + reply.text))
    exact = sum(exacts) / len(exacts) if exacts else None
    confidence = math.exp(fmean(log_probabilities)) if log_probabilities else None
    return Score(sum(recalls) / len(recalls), exact, prompt_tokens, confidence)


def ask_all(
    server: ConversationServer, asked: ConversationSet, concurrency: int, description: str
) -> dict[str, Score]:
    """Scores of all conversations by their keys, several under way at a time, with progress."""
    score = SCORES[asked.suite]
    with ThreadPoolExecutor(concurrency) as pool:
        scores = pool.map(lambda one: converse(server, one, asked.chat, score), asked.conversations)
        keys = [one.key for one in asked.conversations]
        with tqdm(scores, total=len(keys), desc=description, unit="conversation") as bar:
            return dict(zip(keys, bar, strict=True))
