"""What a trace consists of: decode steps, prefill passes, and what the scheduler freed in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Noted:
    """What the scheduler noted between two forward passes.

    Attributes
    ----------
    kind
        ``free``, ``fold`` or ``clear``.
    pages
        Pages that were freed, or the duplicates of a fold, ``[X]``.
    survivors
        Of a fold, pairwise, ``[X]``; empty otherwise.
    """

    kind: str
    pages: Integers
    survivors: Integers


@dataclass(frozen=True)
class Prompts:
    """A prefill pass.

    Attributes
    ----------
    requests
        Ids of its ``B`` requests; the first ``E`` are done with their prompts.
    tokens
        Of prefix and chunk, ``[B]``.
    pages
        Page lists, ``[B, M]``; past a request's last page they mean nothing.
    mass
        Share of the last tokens' attention that each page of an ended prompt got, ``[L, E, H, M]``, ``-inf`` past the
        last page.
    caps
        Most pages that a decode step of each ended prompt may select, ``[E]``.
    offered
        Pages that are offered frames, ``[X]``; 0 = none.
    """

    requests: list[str]
    tokens: Integers
    pages: Integers
    mass: Floats
    caps: Integers
    offered: Integers


@dataclass(frozen=True)
class Step:
    """A decode step.

    Attributes
    ----------
    number
        Decode steps so far, this one included.
    requests
        Ids of its ``B`` requests.
    tokens
        Tokens of each with the new one, ``[B]``.
    pages
        Page lists, ``[B, M]``; past a request's last page they mean nothing.
    scores
        Of all pages, ``[L, B, H, M]``; past the last page they mean nothing. None in a step that took the dense
        shortcut, as the other attributes that follow.
    selected
        Indices into the page lists, hits first, ``[L, B, H, S]``; from ``num_selected`` on they mean nothing.
    num_hits, num_selected
        ``[L, B, H]``.
    """

    number: int
    requests: list[str]
    tokens: Integers
    pages: Integers
    scores: Floats | None = None
    selected: Integers | None = None
    num_hits: Integers | None = None
    num_selected: Integers | None = None


Event = Noted | Prompts | Step


def size(event: Event) -> int:
    """Bytes of an event's arrays."""
    fields: list[Any] = list(vars(event).values())
    return sum(field.nbytes for field in fields if isinstance(field, np.ndarray))
