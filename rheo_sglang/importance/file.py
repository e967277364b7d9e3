"""ImportanceFile: the importance that a server writes to a file, read again by block hash. Needs numpy alone.

docs/importance.md has the format.
"""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 1
COLUMNS: dict[str, type[np.generic]] = {
    "block_hash": np.int64,
    "importance": np.float32,
    "resident": np.float32,
    "position": np.int32,
    "idle_steps": np.int32,
}
"""Arrays of one entry a block, and their types."""


@dataclass(frozen=True)
class Snapshot:
    """One file's content: ``[X]`` arrays by column, the tokens of a block, when and in which step it was read."""

    columns: Mapping[str, npt.NDArray[Any]]
    page_size: int
    step: int
    time: float
    """Seconds since 1970."""


def write_snapshot(path: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Put a snapshot in the place of the file at once: a reader finds the old one or the new one, whole."""
    unfinished = f"{os.fspath(path)}.{os.getpid()}.unfinished"
    scalars = {
        "version": np.int64(VERSION),
        "page_size": np.int64(snapshot.page_size),
        "step": np.int64(snapshot.step),
        "time": np.float64(snapshot.time),
    }
    columns = {name: np.asarray(snapshot.columns[name], kind) for name, kind in COLUMNS.items()}
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, allow_pickle=False, **scalars, **columns)
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot | None:
    """The snapshot in a file; None where there is no file, a part of one, something else or another version."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if int(content["version"]) != VERSION:
                return None
            columns = {name: np.asarray(content[name], kind) for name, kind in COLUMNS.items()}
            if len({column.shape for column in columns.values()}) != 1 or columns["block_hash"].ndim != 1:
                return None
            return Snapshot(columns, int(content["page_size"]), int(content["step"]), float(content["time"]))
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile):
        return None


class ImportanceFile:
    """Importance by block hash, from a file that a server writes again and again.

    Parameters
    ----------
    path
        The setting ``importance_file`` of the server.
    every
        Seconds for which the file is not looked at again.
    expires
        Age in seconds from which a snapshot says nothing any more: its server has stopped.
    clock
        Seconds since 1970.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: float = 1.0,
        expires: float = 300.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self.every = every
        self.expires = expires
        self.clock = clock
        self.snapshot: Snapshot | None = None
        self._looked = -np.inf
        self._seen: tuple[int, int, int] | None = None
        self._importance: dict[int, float] = {}

    def refresh(self) -> Mapping[int, float]:
        """Importance of every block that the file knows, by hash; empty without a file that can be read.

        A torn file, or one that has gone, leaves what was read before, until that expires.
        """
        now = self.clock()
        if now - self._looked >= self.every:
            self._looked = now
            self._look()
        if self.snapshot is None or now - self.snapshot.time > self.expires:
            return {}
        return self._importance

    def get_importance(self, block_hash: int) -> float | None:
        """Importance of one block, or None where the file does not know it."""
        return self.refresh().get(block_hash)

    def _look(self) -> None:
        try:
            status = self.path.stat()
        except OSError:
            return
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen == self._seen:
            return
        snapshot = read_snapshot(self.path)
        if snapshot is not None:
            self.snapshot, self._seen = snapshot, seen
            columns = snapshot.columns
            pairs = zip(columns["block_hash"].tolist(), columns["importance"].tolist(), strict=True)
            self._importance = dict(pairs)
