"""Training rows: exercises hidden in a passage of the corpus, assembled from tokens."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rheo_sglang.evaluation.names import NamePool
from rheo_sglang.evaluation.tasks import TASKS, Exercise, dictionary, multikey, multivalue, repeated, vartrack
from training.corpus import Corpus, document_token
from training.tokenizer import PIECES

FACT, TEXT, ANSWER = 0, 1, 2
"""What a token is to the loss: nothing to predict, running text, an answer of the first of `TASKS`.

Answers of the other tasks follow in the order of `TASKS`: a role of `ANSWER` or more is an answer.
"""

ROLES = ANSWER + len(TASKS)
"""Number of roles."""

_TRIES = 4
"""Exercises that may turn out longer than what is left of a row before the row does without more."""

_NUMBERS = {task: number for number, task in enumerate(TASKS)}


@dataclass(frozen=True)
class Mixture:
    """What rows are made of.

    Attributes
    ----------
    sources
        Weight of each source of running text.
    tasks
        Weight of each task family when all are learnt.
    widths
        Largest number of things (facts, chains, entries) of one exercise, by task family.
    hops
        Lengths of the chains of variable tracking, drawn evenly.
    """

    sources: dict[str, int]
    tasks: dict[str, int]
    widths: dict[str, int]
    hops: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One training row.

    Attributes
    ----------
    tokens
        uint16 ``[length + 1]``: the document token, then text, facts and turns.
    roles
        uint8 ``[length + 1]``: `FACT`, `TEXT`, or `ANSWER` plus the task's number in `TASKS`.
    positions
        int32 ``[length + 1]``: rising, with gaps where distances are stretched.
    """

    tokens: np.ndarray
    roles: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class RowShape:
    """What rows look like at one stage of the curriculum.

    Attributes
    ----------
    length
        Tokens a row predicts.
    density
        Smallest and largest share of a row taken up by facts and turns; the share is drawn log-uniformly.
    largest_position
        Bound of the stretched positions (exclusive); at most `length` means that none are stretched.
    """

    length: int
    density: tuple[float, float]
    largest_position: int


@dataclass(frozen=True)
class _Piece:
    tokens: list[int]
    roles: list[int]


class RowMaker:
    """Makes training rows from a corpus.

    Parameters
    ----------
    corpus
        Tokenised text. Only tasks' facts and turns are tokenised while rows are made.
    mixture
        Shares of texts and tasks.
    """

    def __init__(self, corpus: Corpus, mixture: Mixture) -> None:
        self._mixture = mixture
        self._tokenizer = corpus.tokenizer
        self._document_token = document_token(corpus.tokenizer)
        self._sources = {name: corpus.sources[name] for name in mixture.sources}
        (line_break,) = corpus.tokenizer.encode("\n", add_special_tokens=False).ids
        self._line_ends = {
            name: np.flatnonzero(tokens == line_break) + 1 for name, tokens in self._sources.items()
        }
        self._encoded: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without the document token, from a memory of its pre-tokens."""
        ids = []
        for piece in re.findall(PIECES, text):
            known = self._encoded.get(piece)
            if known is None:
                known = self._encoded[piece] = self._tokenizer.encode(piece, add_special_tokens=False).ids
            ids += known
        return ids

    def make(self, shape: RowShape, shares: Mapping[str, float], rng: random.Random) -> Row:
        """Make one row.

        Parameters
        ----------
        shape
            Length, density and position range.
        shares
            Weight of each task family among this row's exercises.
        rng
            Source of everything random about the row.
        """
        low, high = shape.density
        content = int(shape.length * low * (high / low) ** rng.random())
        exercises = self._draw_exercises(content, shape.length, shares, rng)
        hidden = sum(len(piece.tokens) for facts, turns in exercises for piece in facts + turns)
        text, line_ends = self._passage(shape.length - hidden, rng)
        placed = self._place(exercises, line_ends, len(text), rng)

        tokens = [np.array([self._document_token])]
        roles = [np.array([FACT])]
        start = 0
        for place, piece in placed:
            tokens += [text[start:place], np.array(piece.tokens)]
            roles += [np.full(place - start, TEXT), np.array(piece.roles)]
            start = place
        tokens.append(text[start:])
        roles.append(np.full(len(text) - start, TEXT))
        positions = _stretched_positions(shape, rng)
        return Row(
            np.concatenate(tokens).astype(np.uint16), np.concatenate(roles).astype(np.uint8), positions
        )

    def _draw_exercises(
        self, content: int, length: int, shares: Mapping[str, float], rng: random.Random
    ) -> list[tuple[list[_Piece], list[_Piece]]]:
        names = NamePool(rng)
        least_names = 2 * (max(self._mixture.hops) + 1)
        exercises: list[tuple[list[_Piece], list[_Piece]]] = []
        used = too_long = 0
        while (used < content or not exercises) and too_long < _TRIES:
            (task,) = rng.choices(list(shares), list(shares.values()))
            room = max(1, (max(content, length // 4) - used) // 48)
            width = min(rng.randint(1, self._mixture.widths[task]), room, len(names) // 6)
            if width < 1 or len(names) < least_names:
                break
            exercise = _draw_exercise(task, width, self._mixture.hops, rng, names)
            facts = [
                _Piece(ids, [FACT] * len(ids))
                for ids in (self.encode(fact + "\n") for fact in exercise.facts)
            ]
            turns = []
            for turn in exercise.turns:
                question, answer = self.encode(turn.question), self.encode(turn.answer + "\n")
                role = ANSWER + _NUMBERS[task]
                turns.append(_Piece(question + answer, [FACT] * len(question) + [role] * len(answer)))
            cost = sum(len(piece.tokens) for piece in facts + turns)
            if used + cost > length:
                too_long += 1
                continue
            exercises.append((facts, turns))
            used += cost
        return exercises

    def _passage(self, length: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Text of exactly `length` tokens that ends with a line, and the places after its lines."""
        (name,) = rng.choices(list(self._mixture.sources), list(self._mixture.sources.values()))
        source, line_ends = self._sources[name], self._line_ends[name]
        if length >= line_ends[-1]:
            raise ValueError(
                f"a passage of {length} tokens asked for, but source {name} has only {line_ends[-1]}"
            )
        last = rng.randrange(int(np.searchsorted(line_ends, length)), len(line_ends))
        end = int(line_ends[last])
        start = end - length
        inside = line_ends[np.searchsorted(line_ends, start) : last + 1] - start
        return source[start:end], np.concatenate([[0], inside]) if len(inside) else np.array([0])

    @staticmethod
    def _place(
        exercises: list[tuple[list[_Piece], list[_Piece]]],
        line_ends: np.ndarray,
        text_length: int,
        rng: random.Random,
    ) -> list[tuple[int, _Piece]]:
        """Places of all pieces: facts anywhere, turns after their facts, or all together at the end."""
        turns_at_end = rng.random() < 0.5
        keyed = []
        for facts, turns in exercises:
            places = sorted(rng.randrange(len(line_ends)) for _ in facts)
            keyed += [
                (int(line_ends[line]), rng.random(), fact) for line, fact in zip(places, facts, strict=True)
            ]
            first = places[-1] if places else 0
            for turn in turns:
                if turns_at_end:
                    keyed.append((text_length, 1 + rng.random(), turn))
                else:
                    keyed.append(
                        (int(line_ends[rng.randrange(first, len(line_ends))]), 1 + rng.random(), turn)
                    )
        keyed.sort(key=lambda entry: entry[:2])
        return [(place, piece) for place, _, piece in keyed]


def _draw_exercise(
    task: str, width: int, hops: tuple[int, ...], rng: random.Random, names: NamePool
) -> Exercise:
    """An exercise whose size grows with `width`, with as many turns as it has things to ask for.

    A variable's chain is drawn anew for every turn, so that none can be told by what has been asked before.
    """
    match task:
        case "multikey":
            return multikey(rng, names, keys=width, asked=width)
        case "multivalue":
            return multivalue(rng, names, values=min(width, 5), others=rng.randint(0, width))
        case "vartrack":
            chains = max(width, 2)
            exercise = vartrack(rng, names, chains=chains, hops=rng.choice(hops), asked=chains)
            return replace(exercise, turns=tuple(rng.choices(exercise.turns, k=width)))
        case "dictionary":
            return dictionary(rng, names, entries=width, asked=width, first_turn=rng.random() < 0.5)
        case "repeated":
            return repeated(rng, names, keys=width, asked=width + 1)
        case _:
            return TASKS[task](rng, names)


def _stretched_positions(shape: RowShape, rng: random.Random) -> np.ndarray:
    """Positions with up to three gaps, in half of the rows of a stretched shape.

    Skipping positions trains distances longer than the row (PoSE, Zhu et al., 2023, arXiv:2309.10400).
    """
    count = shape.length + 1
    positions = np.arange(count, dtype=np.int32)
    spare = shape.largest_position - count
    if spare <= 0 or rng.random() < 0.5:
        return positions
    total = rng.randrange(spare)
    gaps = rng.randint(1, 3)
    shares = [rng.random() for _ in range(gaps)]
    for share in shares:
        positions[rng.randrange(1, count) :] += int(total * share / sum(shares))
    return positions
