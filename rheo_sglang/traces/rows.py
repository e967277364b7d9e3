"""rows: an event as rows of a part, in columns of numpy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rheo_sglang.traces.events import Event, Integers, Noted, Prompts, Step
from rheo_sglang.traces.format import DENSE, HEADER, PROMPT, STEP, arrow_schema

NOTHING: Integers = np.zeros(0, dtype=np.int32)


class Lists(NamedTuple):
    """One list a row: how long each is, and all values one after the other."""

    lengths: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


def arrow_table(events: list[tuple[int, Event]], page_size: int) -> Any:
    """Rows of numbered events.

    Parameters
    ----------
    events
        Each with its number.
    page_size
        Tokens per page.

    Returns
    -------
    pyarrow.Table
        With `arrow_schema`; an event's rows stand together.
    """
    import pyarrow as pa

    schema = arrow_schema()
    parts = [_columns(number, event, page_size) for number, event in events]
    arrays = []
    for field in schema:
        pieces = [part[field.name] for part in parts]
        if pa.types.is_list(field.type):
            lengths = np.concatenate([piece.lengths for piece in pieces])
            offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
            values = pa.array(np.concatenate([piece.values for piece in pieces]), field.type.value_type)
            arrays.append(pa.ListArray.from_arrays(offsets, values))
        elif pa.types.is_dictionary(field.type):
            arrays.append(pa.array(np.concatenate(pieces), pa.string()).cast(field.type))
        else:
            arrays.append(pa.array(np.concatenate(pieces), field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _columns(number: int, event: Event, page_size: int) -> dict[str, Any]:
    if isinstance(event, Noted):
        rows = _plain(number, event.kind, 0, [""], [HEADER])
        rows["pages"] = _one_list(event.pages, 1)
        rows["other_pages"] = _one_list(event.survivors, 1)
        return rows
    if isinstance(event, Prompts):
        return _prompts(number, event, page_size)
    return _step(number, event, page_size)


def _plain(number: int, kind: str, step: int, requests: list[str], layers: list[int]) -> dict[str, Any]:
    """Rows of which each request has one for each layer, with nothing in them yet."""
    count = len(requests) * len(layers)
    empty = Lists(np.zeros(count, dtype=np.int64), NOTHING)
    zeros = np.zeros(count, dtype=np.int32)
    return {
        "event": np.full(count, number),
        "kind": np.full(count, kind, dtype=object),
        "step": np.full(count, step, dtype=np.int32),
        "request": np.repeat(np.array(requests, dtype=object), len(layers)),
        "layer": np.tile(np.array(layers, dtype=np.int16), len(requests)),
        "tokens": zeros,
        "cap": zeros,
        **dict.fromkeys(("pages", "other_pages", "selected", "num_hits", "num_selected"), empty),
        "scores": Lists(empty.lengths, np.zeros(0, dtype=np.float32)),
    }


def _one_list(values: npt.NDArray[Any], rows: int) -> Lists:
    """A list in the first row, nothing in the others."""
    lengths = np.zeros(rows, dtype=np.int64)
    lengths[0] = len(values)
    return Lists(lengths, values)


def _prompts(number: int, event: Prompts, page_size: int) -> dict[str, Any]:
    layers = len(event.mass)
    ended = len(event.caps)
    parts = []
    for index, request in enumerate(event.requests):
        chosen = [HEADER, *range(layers)] if index < ended else [HEADER]
        rows = _plain(number, PROMPT, 0, [request], chosen)
        count = -(-int(event.tokens[index]) // page_size)
        rows["tokens"] = np.full(len(chosen), event.tokens[index], dtype=np.int32)
        rows["cap"] = np.full(len(chosen), event.caps[index] if index < ended else 0, dtype=np.int32)
        rows["pages"] = _one_list(event.pages[index, :count], len(chosen))
        rows["other_pages"] = _one_list(event.offered if index == 0 else NOTHING, len(chosen))
        if index < ended:
            mass = event.mass[:, index, :, :count].reshape(layers, -1)
            rows["scores"] = Lists(np.array([0] + [mass.shape[1]] * layers), mass.reshape(-1))
        parts.append(rows)
    return _joined(parts)


def _step(number: int, event: Step, page_size: int) -> dict[str, Any]:
    parts = []
    layers = 0 if event.scores is None else len(event.scores)
    for index, request in enumerate(event.requests):
        chosen = [HEADER, *range(layers)]
        rows = _plain(number, STEP if layers else DENSE, event.number, [request], chosen)
        count = -(-int(event.tokens[index]) // page_size)
        rows["tokens"] = np.full(len(chosen), event.tokens[index], dtype=np.int32)
        rows["pages"] = _one_list(event.pages[index, :count], len(chosen))
        if event.scores is not None:
            assert event.selected is not None
            assert event.num_hits is not None and event.num_selected is not None
            scores = event.scores[:, index, :, :count].reshape(layers, -1)
            rows["scores"] = Lists(np.array([0] + [scores.shape[1]] * layers), scores.reshape(-1))
            num_selected = event.num_selected[:, index]
            within = np.arange(event.selected.shape[3]) < num_selected[:, :, None]
            lengths = np.concatenate(([0], num_selected.sum(1)))
            rows["selected"] = Lists(lengths, event.selected[:, index][within])
            heads = np.array([0] + [num_selected.shape[1]] * layers)
            rows["num_hits"] = Lists(heads, event.num_hits[:, index].reshape(-1))
            rows["num_selected"] = Lists(heads, num_selected.reshape(-1))
        parts.append(rows)
    return _joined(parts)


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: Lists(*(np.concatenate(pieces) for pieces in zip(*(part[name] for part in parts), strict=True)))
        if isinstance(first, Lists)
        else np.concatenate([part[name] for part in parts])
        for name, first in parts[0].items()
    }
