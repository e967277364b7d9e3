"""`rheo heatmap`: attention per page over the decode steps of a traced request, with what was selected marked."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MISSING = "{} not installed; run pip install '.[replay]' in the repository."
NEEDED = ("matplotlib", "pyarrow")


def add_parser(commands: Any) -> None:
    """Add the subcommand to the ``rheo`` command."""
    parser = commands.add_parser(
        "heatmap",
        help="draws the attention per page over the steps of a trace (extra 'replay')",
        description="Draws what share of a request's attention each page drew in every decode step of a trace, with "
        "sink, window and retrieved pages marked.",
    )
    parser.add_argument("trace", type=Path, help="folder of the trace")
    parser.add_argument("--out", type=Path, default=Path("heatmap.png"), help="file, .png (default) or .svg")
    parser.add_argument("--request", help="id of the request; default: the one with the most steps")
    parser.add_argument("--layer", type=int, help="a layer of the traced rank; default: the mean over all")
    parser.add_argument("--head", type=int, help="a KV head; default: the mean over all")
    parser.add_argument("--each", choices=("layer", "head"), help="draw a map for each layer or KV head")
    parser.set_defaults(run=run_heatmap)


def run_heatmap(arguments: argparse.Namespace) -> int:
    """Draw; the exit status."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        return _refuse(MISSING.format(", ".join(missing)))
    from rheo_sglang.traces import TraceError

    try:
        _draw(arguments)
    except (TraceError, ArgumentError) as error:
        return _refuse(str(error))
    return 0


class ArgumentError(Exception):
    """A bad argument, in one sentence."""


def _refuse(sentence: str) -> int:
    print(f"rheo heatmap: error: {sentence}", file=sys.stderr)
    return 2


def _draw(arguments: argparse.Namespace) -> None:
    from rheo_sglang.replay.heatmap import heat_maps, requests
    from rheo_sglang.replay.heatmap_plot import plot
    from rheo_sglang.traces import Trace, TraceError

    if arguments.out.suffix not in (".png", ".svg"):
        raise ArgumentError(f"--out={str(arguments.out)!r} is not supported; allowed: .png or .svg files")
    if not arguments.out.parent.is_dir():
        raise ArgumentError(f"{arguments.out} cannot be written: {arguments.out.parent} is no folder")
    trace = Trace(arguments.trace)
    layers = _chosen("--layer", arguments.layer, trace.layers, arguments.each == "layer")
    heads = _chosen("--head", arguments.head, trace.kv_heads, arguments.each == "head")
    parts = [(layer, head) for layer in layers for head in heads]
    counted = requests(trace)
    if not counted:
        raise TraceError(f"{trace.folder} has no step that selects pages")
    request = arguments.request or counted.most_common(1)[0][0]
    first = trace.manifest["first_layer"]
    titles = [
        f"{_title('layer', layer, first, trace.layers)}, {_title('KV head', head, 0, trace.kv_heads)}"
        for layer, head in parts
    ]
    manifest = trace.manifest
    heading = f"{manifest['model']}, page {manifest['page_size']}, {request}"
    plot(heat_maps(trace, request, parts), titles, heading, arguments.out)
    print(f"{arguments.out}: {counted[request]} steps of {request}")


def _chosen(name: str, value: int | None, count: int, each: bool) -> list[slice]:
    """What each map has of the layers or KV heads."""
    if value is not None and not 0 <= value < count:
        raise ArgumentError(f"{name}={value} is not supported; allowed: 0 to {count - 1}")
    if value is not None:
        return [slice(value, value + 1)]
    return [slice(one, one + 1) for one in range(count)] if each else [slice(0, count)]


def _title(name: str, part: slice, first: int, count: int) -> str:
    if part.stop - part.start == 1:
        return f"{name} {first + part.start}"
    return f"mean of {count} {name}s"
