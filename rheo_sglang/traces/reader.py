"""Trace: reads a trace event by event, as far as it is complete."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rheo_sglang.traces.events import Event, Noted, Prompts, Step
from rheo_sglang.traces.format import DENSE, DROPPED, HEADER, MANIFEST, PART, PROMPT, SCHEMA, STEP


class TraceError(Exception):
    """Why a trace cannot be read, in one sentence."""


class Trace:
    """A trace that a server wrote, or is writing.

    Parameters
    ----------
    folder
        Where it is.

    Attributes
    ----------
    manifest
        What it says of the server.
    parts
        Its complete parts, in order. One that is torn ends the trace, if it is the last.
    dropped
        Steps and prefill passes that the server did not write.

    Raises
    ------
    TraceError
        If there is no trace, or one of another version, or it has no part that can be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _manifest(folder)
        self.layers: int = self.manifest["layers"]
        self.kv_heads: int = self.manifest["kv_heads"]
        self.page_size: int = self.manifest["page_size"]
        self.parts, self.dropped = _parts(folder)

    def events(self) -> Iterator[Event]:
        """All events, in the order in which they happened."""
        import pyarrow.parquet as pq

        for part in self.parts:
            yield from self._of_table(pq.read_table(part))

    def _of_table(self, table: Any) -> Iterator[Event]:
        number = table["event"].to_numpy()
        bounds = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(number)]
        rows = _Rows(table.combine_chunks())
        for start, stop in itertools.pairwise(bounds):
            kind = rows.names["kind"][start]
            if kind == PROMPT:
                yield self._prompts(rows, start, stop)
            elif kind in (STEP, DENSE):
                yield self._step(rows, start, stop)
            else:
                yield Noted(kind, rows.list("pages", start), rows.list("other_pages", start))

    def _prompts(self, rows: _Rows, start: int, stop: int) -> Prompts:
        headers = _headers(rows, start, stop)
        ended = [header for header in headers if header + 1 < stop and rows.plain["layer"][header + 1] == 0]
        pages = _padded([rows.list("pages", header) for header in headers])
        mass = np.full((self.layers, len(ended), self.kv_heads, pages.shape[1]), -np.inf, dtype=np.float32)
        for index, header in enumerate(ended):
            found = rows.lists("scores", header + 1, header + 1 + self.layers)
            shaped = found.reshape(self.layers, self.kv_heads, -1)
            mass[:, index, :, : shaped.shape[2]] = shaped
        return Prompts(
            [rows.names["request"][header] for header in headers],
            rows.plain["tokens"][headers],
            pages,
            mass,
            rows.plain["cap"][ended],
            rows.list("other_pages", start),
        )

    def _step(self, rows: _Rows, start: int, stop: int) -> Step:
        headers = _headers(rows, start, stop)
        requests = [rows.names["request"][header] for header in headers]
        tokens, number = rows.plain["tokens"][headers], int(rows.plain["step"][start])
        pages = _padded([rows.list("pages", header) for header in headers])
        if stop - start == len(headers):
            return Step(number, requests, tokens, pages)
        lists = (self.layers, len(headers), self.kv_heads)
        counts = [
            np.stack(
                [
                    rows.lists(name, header + 1, header + 1 + self.layers).reshape(self.layers, -1)
                    for header in headers
                ],
                1,
            )
            for name in ("num_hits", "num_selected")
        ]
        scores = np.full((*lists, pages.shape[1]), -np.inf, dtype=np.float32)
        selected = np.full((*lists, int(counts[1].max(initial=0))), -1, dtype=np.int32)
        within = np.arange(selected.shape[3]) < counts[1][..., None]
        for index, header in enumerate(headers):
            layers = header + 1, header + 1 + self.layers
            shaped = rows.lists("scores", *layers).reshape(self.layers, self.kv_heads, -1)
            scores[:, index, :, : shaped.shape[2]] = shaped
            selected[:, index][within[:, index]] = rows.lists("selected", *layers)
        return Step(number, requests, tokens, pages, scores, selected, counts[0], counts[1])


class _Rows:
    """A part's columns in numpy."""

    def __init__(self, table: Any) -> None:
        self.plain = {name: table[name].to_numpy() for name in ("step", "layer", "tokens", "cap")}
        self.names = {name: table[name].to_pylist() for name in ("kind", "request")}
        self._lists: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
        for name in ("pages", "other_pages", "scores", "selected", "num_hits", "num_selected"):
            column = table[name].chunk(0)
            self._lists[name] = column.offsets.to_numpy(), column.values.to_numpy()

    def list(self, name: str, row: int) -> npt.NDArray[Any]:
        """One row's list."""
        return self.lists(name, row, row + 1)

    def lists(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """The lists of some rows, one after the other."""
        offsets, values = self._lists[name]
        return values[offsets[start] : offsets[stop]]


def _headers(rows: _Rows, start: int, stop: int) -> npt.NDArray[np.int64]:
    return start + np.flatnonzero(rows.plain["layer"][start:stop] == HEADER)


def _padded(lists: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Lists of several lengths, 0 past each one's end."""
    padded = np.zeros((len(lists), max(map(len, lists))), dtype=np.int32)
    for row, values in zip(padded, lists, strict=True):
        row[: len(values)] = values
    return padded


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        ranks = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
        if ranks:
            raise TraceError(f"{folder} has a trace of each rank; give one of: {', '.join(ranks)}") from None
        raise TraceError(f"{folder} is no trace: it has no {MANIFEST} that can be read") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise TraceError(f"{folder} is a trace of version {found!r}; this rheo reads version {SCHEMA}")
    return manifest


def _parts(folder: Path) -> tuple[list[Path], int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = sorted(folder.glob(PART.replace("{:05d}", "*")))
    complete, dropped = [], 0
    for part in found:
        try:
            metadata = pq.read_metadata(part)
        except (pa.ArrowException, OSError) as error:
            if part == found[-1]:
                break
            raise TraceError(f"{folder} is damaged: {part.name} cannot be read ({error})") from None
        complete.append(part)
        dropped = int((metadata.metadata or {}).get(DROPPED, b"0"))
    if not complete:
        raise TraceError(f"{folder} holds no complete part: the server wrote none, or was killed before")
    return complete, dropped
