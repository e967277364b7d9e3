"""The format of a trace: a folder of a manifest and Parquet parts, each a row group of its own.

A part gets its name once it is complete. A server that is killed loses what it had not put into a part yet, and nothing
that it wrote before.
"""

from __future__ import annotations

from typing import Any

SCHEMA = 1
"""Version of the format."""
MANIFEST = "_trace.json"
"""Readers of a folder of Parquet files skip names that begin with an underscore."""
PART = "part-{:05d}.parquet"
UNFINISHED = ".unfinished"
"""Suffix of a part that is being written."""
DROPPED = b"rheo_dropped"
"""Key of a part's metadata: steps and prefill passes that were dropped before it was written."""
HEADER = -1
"""``layer`` of the row that says what an event is about; those that follow are about layers."""

STEP, DENSE, PROMPT, FREE, FOLD, CLEAR = "step", "dense", "prompt", "free", "fold", "clear"
"""Kinds of events: a decode step, one that took the dense shortcut, a prefill pass, and what the scheduler noted."""


def arrow_schema() -> Any:
    """Columns of a part; docs/traces.md says what they mean."""
    import pyarrow as pa

    name = pa.dictionary(pa.int32(), pa.string())
    pages = pa.list_(pa.int32())
    return pa.schema(
        [
            ("event", pa.int64()),
            ("kind", name),
            ("step", pa.int32()),
            ("request", name),
            ("layer", pa.int16()),
            ("tokens", pa.int32()),
            ("cap", pa.int32()),
            ("pages", pages),
            ("other_pages", pages),
            ("scores", pa.list_(pa.float32())),
            ("selected", pages),
            ("num_hits", pages),
            ("num_selected", pages),
        ]
    )
