"""chunk_times: how long each chunk of a long prompt takes, from what SGLang logs."""

from __future__ import annotations

import re
import time

BEGINS = "long prompt begins"
"""What a benchmark prints before it sends the prompt."""
PREFILL_LINE = re.compile(r"Prefill batch.*?#new-token: (\d+)")


class ChunkTimes:
    """Reads the output of a server, which logs every chunk when it is computed.

    Parameters
    ----------
    tokens
        Of the prompt: what is prefilled after them is not counted.

    Attributes
    ----------
    chunks
        Tokens and seconds of every chunk so far.
    """

    def __init__(self, tokens: int) -> None:
        self.left = 0
        self.tokens = tokens
        self.last = 0.0
        self.chunks: list[tuple[int, float]] = []

    def __call__(self, line: str, now: float | None = None) -> None:
        """Look at one line, read at ``now`` (s); this moment by default."""
        now = time.monotonic() if now is None else now
        if BEGINS in line:
            self.left, self.last, self.chunks = self.tokens, now, []
        elif self.left > 0 and (match := PREFILL_LINE.search(line)):
            self.chunks.append((int(match[1]), now - self.last))
            self.left -= int(match[1])
            self.last = now
