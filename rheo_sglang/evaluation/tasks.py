"""Recall tasks: facts to hide in a long text, and the turns that ask for them.

The six families follow RULER (Hsieh et al., 2024, arXiv:2404.06654) and its multi-turn relatives. A task
knows nothing of the text it is hidden in nor of tokens; `haystack` puts both together. Training data and
evaluation draw from these same generators, with separate seeds and separate texts.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from rheo_sglang.evaluation.names import NamePool

_SMALLEST_VALUE, _LARGEST_VALUE = 100_000, 999_999


@dataclass(frozen=True)
class Turn:
    """One question of a conversation.

    Attributes
    ----------
    question
        Text up to and including the first words of the answer; the model continues it.
    expected
        Items the continuation must contain, in order.
    answer
        The continuation as training text, starting with a space, ending before the line break.
    """

    question: str
    expected: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Exercise:
    """Facts and the turns that ask for them.

    Attributes
    ----------
    task
        Name of the task family, a key of `TASKS`.
    facts
        Passages of whole lines. They keep their order in the text, with any amount of other text between.
    turns
        The conversation that follows the text.
    """

    task: str
    facts: tuple[str, ...]
    turns: tuple[Turn, ...]


def _draw_values(rng: random.Random, count: int) -> list[str]:
    return [str(value) for value in rng.sample(range(_SMALLEST_VALUE, _LARGEST_VALUE + 1), count)]


def _code_fact(name: str, value: str) -> str:
    return f"The access code for {name} is {value}."


def _code_turn(name: str, value: str) -> Turn:
    question = f"Question: What is the access code for {name}?\nAnswer: The access code for {name} is"
    return Turn(question, (value,), f" {value}.")


def needle(rng: random.Random, names: NamePool) -> Exercise:
    """One fact in the whole text."""
    return multikey(rng, names, keys=1, asked=1, task="needle")


def multikey(
    rng: random.Random, names: NamePool, keys: int = 16, asked: int = 1, task: str = "multikey"
) -> Exercise:
    """Many facts of one form, of which some are asked for.

    Parameters
    ----------
    rng, names
        Sources of values and names.
    keys
        Number of facts.
    asked
        Number of turns, each about another fact.
    task
        Name recorded in the exercise.
    """
    codes = list(zip(names.draw(keys), _draw_values(rng, keys), strict=True))
    facts = tuple(_code_fact(name, value) for name, value in codes)
    return Exercise(task, facts, tuple(_code_turn(name, value) for name, value in rng.sample(codes, asked)))


def multivalue(rng: random.Random, names: NamePool, values: int = 4, others: int = 4) -> Exercise:
    """Several facts about one name, all asked for at once, among facts about other names.

    Parameters
    ----------
    rng, names
        Sources of values and names.
    values
        Number of facts about the name asked for.
    others
        Number of facts about other names.
    """
    asked, *rest = names.draw(1 + others)
    parcels = list(zip([asked] * values + rest, _draw_values(rng, values + others), strict=True))
    rng.shuffle(parcels)
    facts = tuple(f"The next parcel for {name} is {value}." for name, value in parcels)
    expected = tuple(value for name, value in parcels if name == asked)
    question = f"Question: Which parcels are there for {asked}?\nAnswer: The parcels for {asked} are"
    return Exercise("multivalue", facts, (Turn(question, expected, f" {', '.join(expected)}."),))


def vartrack(rng: random.Random, names: NamePool, chains: int = 2, hops: int = 4, asked: int = 1) -> Exercise:
    """Chains of assignments; a turn gives a chain's value and asks for all variables that hold it.

    Parameters
    ----------
    rng, names
        Sources of values and variable names.
    chains
        Number of interleaved chains.
    hops
        Assignments from variable to variable in each chain; a chain has one variable more.
    asked
        Number of turns, each about another chain.
    """
    values = _draw_values(rng, chains)
    variables = [names.draw(hops + 1) for _ in range(chains)]
    order = [chain for chain in range(chains) for _ in range(hops + 1)]
    rng.shuffle(order)
    reached = [0] * chains
    facts = []
    for chain in order:
        hop = reached[chain]
        source = f"VAR {variables[chain][hop - 1]}" if hop else values[chain]
        facts.append(f"VAR {variables[chain][hop]} = {source}")
        reached[chain] += 1
    turns = []
    for chain in rng.sample(range(chains), asked):
        value = values[chain]
        question = f"Question: Which variables hold {value}?\nAnswer: The variables that hold {value} are"
        turns.append(Turn(question, tuple(variables[chain]), f" {', '.join(variables[chain])}."))
    return Exercise("vartrack", tuple(facts), tuple(turns))


def dictionary(
    rng: random.Random, names: NamePool, entries: int = 16, asked: int = 3, first_turn: bool = True
) -> Exercise:
    """A table of entries in one place, asked for after a turn about something else.

    Parameters
    ----------
    rng, names
        Sources of values and keys.
    entries
        Number of entries of the table.
    asked
        Number of turns about the table.
    first_turn
        Whether an unrelated fact is asked for before.
    """
    table = list(zip(names.draw(entries), _draw_values(rng, entries), strict=True))
    facts = ["\n".join(["Ledger:", *(f"* {name} -> {value}" for name, value in table)])]
    turns = []
    if first_turn:
        (name,), (value,) = names.draw(1), _draw_values(rng, 1)
        facts.insert(rng.randrange(2), _code_fact(name, value))
        turns.append(_code_turn(name, value))
    for name, value in rng.sample(table, asked):
        question = f"Question: What does the ledger list for {name}?\nAnswer: * {name} ->"
        turns.append(Turn(question, (value,), f" {value}"))
    return Exercise("dictionary", tuple(facts), tuple(turns))


def repeated(rng: random.Random, names: NamePool, keys: int = 8, asked: int = 8) -> Exercise:
    """Turn after turn about one text, with some questions asked again.

    Parameters
    ----------
    rng, names
        Sources of values and names.
    keys
        Number of facts.
    asked
        Number of turns; each is about a fact drawn anew.
    """
    codes = list(zip(names.draw(keys), _draw_values(rng, keys), strict=True))
    facts = tuple(_code_fact(name, value) for name, value in codes)
    return Exercise("repeated", facts, tuple(_code_turn(*rng.choice(codes)) for _ in range(asked)))


TASKS: dict[str, Callable[[random.Random, NamePool], Exercise]] = {
    "needle": needle,
    "multikey": multikey,
    "multivalue": multivalue,
    "vartrack": vartrack,
    "dictionary": dictionary,
    "repeated": repeated,
}


def recall(turn: Turn, reply: str) -> float:
    """Fraction of the expected items that a reply contains as whole words, in [0, 1]."""
    words = set(re.findall(r"\w+", reply))
    return sum(item in words for item in turn.expected) / len(turn.expected)
