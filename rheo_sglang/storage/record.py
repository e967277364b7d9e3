"""RecordFormat: a page as bytes: whose they are and whether they are whole, importance, summaries, K and V."""

from __future__ import annotations

import hashlib
import struct
import zlib

import numpy as np
import numpy.typing as npt

MAGIC = b"RHEOPAGE"
VERSION = 1
HEADER = struct.Struct("<8sIIQ32s")
"""Magic, version, checksum of all that follows it, bytes of the record, SHA-256 digest of its key."""
CHECKED_FROM = 16
"""First byte that the checksum covers."""
ALIGNMENT = 64

Bytes = npt.NDArray[np.uint8]


class RecordFormat:
    """Where a page's parts lie in its record.

    Parameters
    ----------
    layers, kv_heads
        ``L`` and ``H``.
    summary_bytes
        Bytes of a page's summary in one layer and KV head.
    block_bytes
        Bytes of a page's K and V in one layer, over all KV heads.

    Attributes
    ----------
    record_bytes
        Bytes of a record; all records of a server have as many.

    Notes
    -----
    A record holds importance ``[L, H]``, float32, then summaries ``[L, H, summary_bytes]``, then the blocks as host
    pages have them, ``[L, block_bytes]``; each part begins at a multiple of 64 bytes.
    """

    def __init__(self, layers: int, kv_heads: int, summary_bytes: int, block_bytes: int) -> None:
        self.layers = layers
        self.kv_heads = kv_heads
        self.summary_bytes = summary_bytes
        self.block_bytes = block_bytes
        self._importance = _aligned(HEADER.size)
        self._summaries = _aligned(self._importance + 4 * layers * kv_heads)
        self._blocks = _aligned(self._summaries + layers * kv_heads * summary_bytes)
        self.record_bytes = self._blocks + layers * block_bytes

    def importance(self, record: Bytes) -> npt.NDArray[np.float32]:
        """Importance in a record, ``[L, H]``, a view."""
        part = record[self._importance : self._importance + 4 * self.layers * self.kv_heads]
        return part.view(np.float32).reshape(self.layers, self.kv_heads)

    def summaries(self, record: Bytes) -> Bytes:
        """Summaries in a record, ``[L, H, summary_bytes]``, a view."""
        size = self.layers * self.kv_heads * self.summary_bytes
        part = record[self._summaries : self._summaries + size]
        return part.reshape(self.layers, self.kv_heads, self.summary_bytes)

    def blocks(self, record: Bytes) -> Bytes:
        """K and V in a record, ``[L, block_bytes]``, a view."""
        return record[self._blocks :].reshape(self.layers, self.block_bytes)

    def seal(self, record: Bytes, key: str) -> None:
        """Write the header of a record whose parts are complete."""
        digest = hashlib.sha256(key.encode()).digest()
        HEADER.pack_into(record.data, 0, MAGIC, VERSION, 0, self.record_bytes, digest)
        HEADER.pack_into(
            record.data, 0, MAGIC, VERSION, zlib.crc32(record[CHECKED_FROM:].data), self.record_bytes, digest
        )

    def holds(self, record: Bytes, key: str) -> bool:
        """Whether a record is whole and the one of this key."""
        magic, version, checksum, size, digest = HEADER.unpack_from(record.data)
        return (
            (magic, version, size) == (MAGIC, VERSION, self.record_bytes)
            and digest == hashlib.sha256(key.encode()).digest()
            and checksum == zlib.crc32(record[CHECKED_FROM:].data)
        )


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
