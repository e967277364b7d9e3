"""DRAM that a GPU's driver does not pin: one sentence, and nothing stays pinned."""

from __future__ import annotations

import gc

import pytest
import torch

from rheo_sglang.errors import ConfigError
from rheo_sglang.pools.pinned import GIB, pinned_zeros

PIECE = 1 << 20


class Runtime:
    """The CUDA runtime of a machine that lets one process pin two pieces."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.pinned: list[int] = []

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:  # noqa: N802 - its name
        if len(self.pinned) == self.pieces:
            return 2
        self.pinned.append(pointer)
        return 0

    def cudaHostUnregister(self, pointer: int) -> int:  # noqa: N802
        self.pinned.remove(pointer)
        return 0

    @staticmethod
    def cudaGetErrorString(error: int) -> str:  # noqa: N802
        return {2: "out of memory"}[error]


def test_memory_that_is_not_pinned_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    with pytest.raises(ConfigError) as refused:
        pinned_zeros((5 * PIECE,), torch.uint8, piece_bytes=PIECE)
    sentence = str(refused.value)
    assert sentence.startswith(
        "rheo: the host pool takes 0.00 GiB of pinned memory, of which 0.00 GiB could be had ("
    )
    assert "CUDA: out of memory" in sentence and sentence.count(". ") == 0
    assert "allowed: a smaller host_pool_gib" in sentence
    del refused
    gc.collect()
    assert runtime.pinned == [], "the pieces before it stay pinned"


def test_memory_that_the_system_lacks_is_refused_before_it_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    with pytest.raises(ConfigError, match=r"takes 8388608\.00 GiB of pinned memory, of which 0\.00 GiB"):
        pinned_zeros((8388608 * GIB,), torch.uint8)
    assert runtime.pinned == []


def test_a_pool_that_fits_is_pinned_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(8)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    pool = pinned_zeros((5 * PIECE // 2,), torch.int16, piece_bytes=PIECE)
    assert len(runtime.pinned) == 5 and not pool.any()
    del pool
    gc.collect()
    assert runtime.pinned == []
