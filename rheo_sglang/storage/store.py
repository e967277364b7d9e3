"""Store: one of SGLang's storage backends, whose failures are counted and never raised."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rheo_sglang.storage.counters import StorageCounters
from rheo_sglang.threads import in_words

logger = logging.getLogger(__name__)

MOST_BAD = 1 << 16
"""Keys that are remembered as bad."""
LOGGED_EVERY = 30.0
"""Seconds between two lines of the log about failures."""
REST_SECONDS = 10.0
"""How long nothing is written after a write that failed: a disk that is full stays so for a while."""
UNFINISHED_AGE = 600.0
"""Age in seconds from which a file that was never renamed is one of a server that is gone."""
FOLDER_VARIABLE = "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR"
LIMIT_SETTINGS = ("max_size", "min_free_space")
LIMIT_VARIABLES = ("SGLANG_HICACHE_FILE_BACKEND_MAX_SIZE", "SGLANG_HICACHE_FILE_BACKEND_MIN_FREE_SPACE")


class Store:
    """Records by key.

    A record that turned out not to be the one that was written is *bad*: it is removed where the backend can, and
    counts as absent until it has been written again.

    Parameters
    ----------
    backend
        SGLang's ``HiCacheStorage``.
    counters
        What failures are counted in.
    """

    def __init__(self, backend: Any, counters: StorageCounters) -> None:
        self.backend = backend
        self.counters = counters
        self._bad: OrderedDict[str, None] = OrderedDict()
        self._logged = self._rests_until = -float("inf")

    @property
    def rests(self) -> bool:
        """Whether a write failed a moment ago, so that nothing is written for now."""
        return time.monotonic() < self._rests_until

    def leading(self, keys: Sequence[str]) -> int:
        """How many keys, from the first one on, have a record."""
        good = next((place for place, key in enumerate(keys) if key in self._bad), len(keys))
        try:
            return min(int(self.backend.batch_exists(list(keys[:good]))), good)
        except Exception as error:
            self._failed("read_errors", "asked for records", error)
            return 0

    def has(self, key: str) -> bool:
        """Whether a key has a record."""
        if key in self._bad:
            return False
        try:
            return bool(self.backend.exists(key))
        except Exception as error:
            self._failed("read_errors", "asked for a record", error)
            return False

    def write(self, key: str, record: torch.Tensor) -> bool:
        """Store a record, ``[record_bytes]``, uint8; False if that failed."""
        try:
            if not self.backend.set(key, record):
                self._failed("write_errors", "written to", None)
                return False
        except Exception as error:
            self._failed("write_errors", "written to", error)
            return False
        self._bad.pop(key, None)
        return True

    def read(self, keys: Sequence[str], records: Sequence[torch.Tensor]) -> list[bool]:
        """Read records into buffers, ``[record_bytes]``, uint8; which of them were found."""
        try:
            found = self.backend.batch_get(list(keys), list(records))
        except Exception as error:
            if len(keys) > 1:
                return [self.read([key], [record])[0] for key, record in zip(keys, records, strict=True)]
            self._failed("read_errors", "read", error)
            if _has_another_size(_file_of(self.backend, keys[0]), records[0].numel()):
                self.discard(keys[0])
            return [False]
        if found is None:
            return [False] * len(keys)
        return [_received(one, record) for one, record in zip(found, records, strict=True)]

    def discard(self, key: str) -> None:
        """Take a record for bad."""
        self._bad[key] = None
        while len(self._bad) > MOST_BAD:
            self._bad.popitem(last=False)
        path = _file_of(self.backend, key)
        if path is None:
            return
        cache = getattr(self.backend, "metadata_cache", None)
        if cache is not None:
            cache.remove(path.stem)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._failed("write_errors", "written to", error)

    def _failed(self, counter: str, what: str, error: Exception | None) -> None:
        """Count a failure and log one now and then; a backend that only says no has logged why itself."""
        self.counters.add(counter)
        now = time.monotonic()
        if counter == "write_errors":
            self._rests_until = now + REST_SECONDS
        if now - self._logged >= LOGGED_EVERY:
            self._logged = now
            reason = "its backend refused" if error is None else in_words(error)
            logger.warning("rheo: the storage could not be %s (%s)", what, reason)


def _has_another_size(path: Path | None, size: int) -> bool:
    """Whether a record's file is there and not a whole record."""
    try:
        return path is not None and path.stat().st_size != size
    except OSError:
        return False


def _received(found: Any, record: torch.Tensor) -> bool:
    """Whether a backend found a record; it may have put it into a tensor of its own."""
    if found is None:
        return False
    if found is not record and found.data_ptr() != record.data_ptr():
        content = found.contiguous().view(torch.uint8).flatten()
        if content.numel() != record.numel():
            return False
        record.copy_(content)
    return True


def _file_of(backend: Any, key: str) -> Path | None:
    """The file that SGLang's ``file`` backend keeps a record in; None of another backend."""
    if not hasattr(backend, "_get_suffixed_key"):
        return None
    return Path(backend.file_path) / f"{backend._get_suffixed_key(key)}.bin"


def open_backend(name: str, settings: dict[str, Any], model: str) -> Any:
    """Have SGLang's factory make a backend.

    Parameters
    ----------
    name
        ``--hicache-storage-backend``: ``file`` or ``dynamic``.
    settings
        ``--hicache-storage-backend-extra-config``.
    model
        Model's name, which ``file`` makes a part of its files' names.

    Notes
    -----
    ``file`` has no limit of its own accord: without one it gets half of what the file system has free.
    """
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    if name == "file":
        settings = _file_settings(settings)
    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=False,
        model_name=model,
        extra_config=settings,
    )
    backend = StorageBackendFactory.create_backend(name, config, None)
    if name == "file":
        remove_unfinished(Path(backend.file_path))
    return backend


def _file_settings(settings: dict[str, Any]) -> dict[str, Any]:
    folder = settings.get("file_storage_path")
    if folder is not None:
        os.environ.setdefault(FOLDER_VARIABLE, folder)
    path = Path(os.environ.get(FOLDER_VARIABLE, "/tmp/hicache"))
    path.mkdir(parents=True, exist_ok=True)
    limited = any(settings.get(name) for name in LIMIT_SETTINGS)
    if limited or any(os.environ.get(name) for name in LIMIT_VARIABLES):
        return settings
    held = sum(entry.stat().st_size for entry in path.glob("*.bin"))
    state = os.statvfs(path)
    limit = (state.f_bavail * state.f_frsize + held) // 2
    logger.info(
        "rheo: storage in %s takes up to %.2f GiB, half of what is free; max_size in "
        "--hicache-storage-backend-extra-config chooses",
        path,
        limit / (1 << 30),
    )
    return {**settings, "max_size": limit}


def remove_unfinished(folder: Path) -> None:
    """Remove what servers that are gone began to write to SGLang's ``file`` backend and did not rename."""
    now = time.time()
    for path in [*folder.glob(".*.tmp"), *folder.glob("*.bin.tmp.*")]:
        try:
            if now - path.stat().st_mtime > UNFINISHED_AGE:
                path.unlink()
        except OSError:
            continue
