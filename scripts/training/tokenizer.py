"""A small byte-level BPE tokenizer: lines tokenise apart, numbers come in groups of three digits."""

import random
from collections.abc import Iterable, Iterator
from itertools import product

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from rheo_sglang.evaluation.names import NAMES, NamePool
from rheo_sglang.evaluation.tasks import TASKS

VOCABULARY = 4096
DOCUMENT_TOKEN = "<|endoftext|>"
PIECES = r"\n| ?[^\W\d_]+|[0-9]{1,3}| ?[^\s\w]+| ?_+|\w|[^\S\n]+"
"""Pre-tokens, the same to Python's `re` and to the tokenizer; a line break is always one of its own."""

_WEIGHT_OF_WANTED_PIECES = 3000


def _wanted_pieces() -> Iterator[str]:
    """Numbers, names and the tasks' wording, so often that each becomes one token."""
    yield from ("".join(digits) + "\n" for digits in product("0123456789", repeat=3))
    yield from (f"* {name}\n" for name in NAMES)
    rng = random.Random(0)
    for make in TASKS.values():
        exercise = make(rng, NamePool(rng))
        yield "\n".join([*exercise.facts, *(turn.question + turn.answer for turn in exercise.turns)])


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer.

    Parameters
    ----------
    texts
        Training texts.

    Returns
    -------
    tokenizers.Tokenizer
        `VOCABULARY` tokens; encoding with special tokens puts `DOCUMENT_TOKEN` in front.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(PIECES), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[DOCUMENT_TOKEN],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    wanted = "".join(_wanted_pieces())
    tokenizer.train_from_iterator([*texts, *([wanted] * _WEIGHT_OF_WANTED_PIECES)], trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{DOCUMENT_TOKEN} $A",
        special_tokens=[(DOCUMENT_TOKEN, tokenizer.token_to_id(DOCUMENT_TOKEN))],
    )
    return tokenizer
