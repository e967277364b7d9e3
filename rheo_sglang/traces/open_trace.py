"""open_trace: begins the trace of one rank, or says in one sentence why it cannot."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from rheo_sglang.config import RheoConfig
from rheo_sglang.errors import reject
from rheo_sglang.traces.format import SCHEMA
from rheo_sglang.traces.tracer import Tracer
from rheo_sglang.traces.writer import TraceWriter

NEEDED = ("pyarrow",)
"""What the extra ``trace`` installs for a server."""


@dataclass(frozen=True)
class TracedShape:
    """What a trace says of the server beside its settings.

    Attributes
    ----------
    model
        As it is served.
    page_size
        Tokens per page.
    layers, first_layer
        ``L`` of this rank, and the model's number of the first.
    kv_heads, group, head_dim
        ``H`` of this rank, query heads of each, and their size.
    pages, frames
        Logical pages with the padding page, and frames of each layer and KV head.
    summary
        Page summary that scored the pages.
    context_len
        Most tokens of a request.
    """

    model: str
    page_size: int
    layers: int
    first_layer: int
    kv_heads: int
    group: int
    head_dim: int
    pages: int
    frames: int
    summary: str
    context_len: int


def open_trace(folder: Path, config: RheoConfig, shape: TracedShape, device: torch.device) -> Tracer:
    """Begin a trace.

    Parameters
    ----------
    folder
        New, or empty.
    config
        Settings, with ``trace`` and ``trace_gib``.
    shape
        The rest of the manifest.
    device
        Where steps run.

    Raises
    ------
    ConfigError
        If the folder is not empty or cannot be made, or pyarrow is not installed.
    """
    for name in NEEDED:
        if find_spec(name) is None:
            reject("trace", config.trace, f"no trace without {name}: run pip install '.[trace]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        reject("trace", config.trace, f"a folder that can be written to ({error.strerror})")
    if taken:
        reject("trace", config.trace, "a new or empty folder")
    prewarm = config.prewarm_weight(device.type)
    manifest = {"schema": SCHEMA, **dataclasses.asdict(shape), "prewarm": prewarm}
    manifest["config"] = dataclasses.asdict(config)
    writer = TraceWriter(folder, manifest, int(config.trace_gib * 2**30))
    return Tracer(writer, shape.layers, shape.kv_heads, device)
