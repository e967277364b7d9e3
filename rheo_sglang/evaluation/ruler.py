"""RULER's tasks from lm_eval's own generators (Hsieh et al., 2024, arXiv:2404.06654), without a network.

Eleven of the thirteen: the two question-answering tasks download their documents. Where RULER hides needles in essays
that it downloads, another text takes their place, so figures of those tasks are to be compared with each other and not
with published ones.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

from rheo_sglang.evaluation.conversations import Conversation, Question

NEEDLES: dict[str, dict[str, Any]] = {
    "niah_single_1": {"type_haystack": "repeat"},
    "niah_single_2": {},
    "niah_single_3": {"type_needle_v": "uuids"},
    "niah_multikey_1": {"num_needle_k": 4},
    "niah_multikey_2": {"type_haystack": "needle"},
    "niah_multikey_3": {"type_haystack": "needle", "type_needle_k": "uuids", "type_needle_v": "uuids"},
    "niah_multivalue": {"num_needle_v": 4},
    "niah_multiquery": {"num_needle_q": 4},
}
"""Arguments of lm_eval's ``generate_samples`` beyond `NEEDLE_DEFAULTS`, as its task functions give them."""
NEEDLE_DEFAULTS = {"type_haystack": "essay", "type_needle_k": "words", "type_needle_v": "numbers"}
REPLY_TOKENS = {**dict.fromkeys(NEEDLES, 128), "vt": 30, "cwe": 120, "fwe": 50}
"""Most tokens of a reply, as in lm_eval's task files; its keys are the tasks."""
ROOM = 128
"""Tokens kept free for a chat format, and for the reply where the generator forgets it (fwe)."""
LEAST_LENGTH = 1024
UNIT, MOST_UNIT_TOKENS = "The grass is green. The sky is blue. The sun is yellow. Here we go.", 48
"""With shorter prompts, or a tokenizer that takes more tokens for this text, lm_eval's generators never end."""
NUMPY_SEEDS = 1 << 32


class RulerGenerators:
    """lm_eval's generators, imported once.

    Parameters
    ----------
    count_tokens
        Sizes of texts, in tokens.
    text
        Stands for RULER's essays.

    Raises
    ------
    ImportError
        Where a package that they need is missing.
    ValueError
        Where the tokenizer takes too many tokens for English text.
    """

    def __init__(self, count_tokens: Callable[[Sequence[str]], list[int]], text: str) -> None:
        if (size := count_tokens([UNIT])[0]) > MOST_UNIT_TOKENS:
            raise ValueError(
                f"the tokenizer takes {size} tokens for {UNIT!r}; RULER's generators need at most {MOST_UNIT_TOKENS}"
            )
        import nltk

        with mock.patch.object(nltk.data, "find"):
            from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, prepare_niah, vt_utils
        self._count_tokens = count_tokens
        self._words = text.split()
        self._niah, self._needles = niah_utils, prepare_niah
        self._vt, self._cwe, self._fwe = vt_utils, cwe_utils, fwe_utils

    def conversations(self, task: str, length: int, samples: int, seed: int) -> list[Conversation]:
        """Samples of one task.

        Parameters
        ----------
        task
            A key of `REPLY_TOKENS`.
        length
            Most tokens of prompt and reply, a chat format of up to some 70 tokens included.
        samples
            How many; fewer with the same seed are the first of them.
        seed
            Of all of them together.

        Raises
        ------
        ValueError
            If the length is below `LEAST_LENGTH`, or a generator exceeds it.
        """
        if length < LEAST_LENGTH:
            raise ValueError(f"RULER's {task} needs at least {LEAST_LENGTH} tokens, not {length}")
        silence = io.StringIO()
        with (
            self._seeded(f"{task} {length} {seed}"),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            documents = self._generate(task, length - ROOM, samples)
        made = [
            Conversation(
                task,
                length,
                number,
                "",
                (Question(one["input"], one["gen_prefix"], REPLY_TOKENS[task], tuple(one["outputs"])),),
            )
            for number, one in enumerate(documents, seed)
        ]
        for one in made:
            self._check(one)
        return made

    def _check(self, conversation: Conversation) -> None:
        (question,) = conversation.questions
        size = sum(self._count_tokens([question.text, question.prefix])) + question.max_tokens
        if size > conversation.length - ROOM // 2:
            raise ValueError(
                f"lm_eval made {size} tokens for RULER's {conversation.key}; they leave no room for a chat format"
            )

    @contextlib.contextmanager
    def _seeded(self, seed: str) -> Iterator[None]:
        import numpy

        source = random.Random(seed)
        state = random.getstate(), numpy.random.get_state()
        random.seed(source.random())
        numpy.random.seed(source.randrange(NUMPY_SEEDS))
        self._cwe.RNG.seed(source.random())
        try:
            yield
        finally:
            random.setstate(state[0])
            numpy.random.set_state(state[1])

    def _generate(self, task: str, length: int, samples: int) -> list[dict[str, Any]]:
        tokenizer = self._tokenize
        if task in NEEDLES:
            settings = NEEDLE_DEFAULTS | NEEDLES[task]
            essay = settings["type_haystack"] == "essay"
            haystack = self._words if essay else self._needles.get_haystack(settings["type_haystack"])
            with mock.patch.object(self._needles, "cached_sent_tokenize", sentences):
                return self._needles.generate_samples(
                    haystack,
                    max_seq_length=length,
                    template=self._niah.TEMPLATE,
                    num_samples=samples,
                    TOKENIZER=tokenizer,
                    **settings,
                )
        if task == "vt":
            make = self._vt.sys_vartrack_w_noise_random
            (example,) = make(tokenizer, num_samples=1, max_seq_length=500, incremental=5)
            return make(tokenizer, num_samples=samples, max_seq_length=length, icl_example=example)
        make = self._cwe.sys_word_pair_random if task == "cwe" else self._fwe.sys_kwext
        return make(tokenizer=tokenizer, num_samples=samples, max_seq_length=length)

    def _tokenize(self, text: str) -> SimpleNamespace:
        """What generators ask a tokenizer of transformers for: ``input_ids``, of which they take the length."""
        return SimpleNamespace(input_ids=range(self._count_tokens([text])[0]))


def sentences(text: str) -> list[str]:
    """Sentences of a text, by their last characters; nltk's ``sent_tokenize`` downloads what it needs."""
    return re.split(r"(?<=[.!?])\s+", text)
