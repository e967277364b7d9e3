"""local_prefill: a benchmark's SGLang plugin that seeds a long KV cache without the cost of dense prefill.

While a file exists, every chunk of a prompt attends to itself alone. All else is as ever: K and V of every token are
computed by the model and written to host pages, summaries are made, prefixes are staged, and the prompt's last queries
rank all pages. Only the hidden states, and so the values of K and V, are not those of dense attention.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

ENVIRONMENT = "RHEO_BENCH_LOCAL_PREFILL"
"""The file."""
ENTRY_POINT = "[sglang.srt.plugins]\nrheo-bench-local-prefill = benchmarks.local_prefill:register\n"


def install(folder: Path) -> None:
    """Make SGLang find this plugin in processes that have ``folder`` and ``scripts`` on their path."""
    info = folder / "rheo_bench_local_prefill-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rheo-bench-local-prefill\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)


def local_while(switch: Path, attend: Any) -> Any:
    """Dense attention that leaves the prefixes out while a file exists.

    Parameters
    ----------
    switch
        The file.
    attend
        A `rheo_sglang.prefill.dense.DenseAttention`.
    """

    def attend_chunks(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Any, scale: float
    ) -> torch.Tensor:
        if batch.prefix is None or not switch.exists():
            return attend(q, k, v, batch, scale)
        chunks = batch._replace(key_starts=batch.query_starts, cu_keys=batch.cu_queries, prefix=None)
        return attend(q, k[batch.chunk_rows], v[batch.chunk_rows], chunks, scale)

    return attend_chunks


def register() -> None:
    """Wrap the choice of rheo's dense attention, where the environment asks for it."""
    if ENVIRONMENT not in os.environ:
        return
    from rheo_sglang.prefill import prefill

    switch, choose = Path(os.environ[ENVIRONMENT]), prefill.dense_attention

    def choose_local(*arguments: Any) -> Any:
        return local_while(switch, choose(*arguments))

    setattr(prefill, "dense_attention", choose_local)  # noqa: B010 - the types are those of any call
