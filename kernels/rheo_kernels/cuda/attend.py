"""attend: decode attention over selected pages, or over whole page lists, in one kernel that also merges its splits."""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple, TypeVar

import torch

from rheo_kernels.cuda.compile import Kernel, UnavailableError, compile_kernel
from rheo_kernels.cuda.offload import TIMESTAMPS, CpuOffload
from rheo_kernels.cuda.shape import Shape
from rheo_kernels.cuda.workspace import LISTS_AT_ONCE, Pipeline, TailPipeline, Workspace, offload_blocks
from rheo_kernels.types import RunnersUp, Selected, Tail
from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_kernels.types.offload_words import LINE, TAG_SHIFT, TOKEN_BITS
from rheo_kernels.types.subcentroids import CENTRE_GROUPS, GROUPS

LOG2_E = 1.4426950408889634
FETCHERS = 48
"""Blocks that fetch, a page each at a time, and up to one more for every list: enough to fill PCIe."""
MIN_CAPABILITY = (9, 0)


def unsupported(shape: Shape, device: torch.device) -> str | None:
    """Why the kernel cannot serve a shape here, or None."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return "it needs an NVIDIA GPU of compute capability 9.0 or later"
    dim, page_size, group, dtype, kv_dtype = shape
    if dtype not in (torch.bfloat16, torch.float16):
        return f"attention computes in {dtype}; allowed: bfloat16, float16"
    if kv_dtype not in (dtype, EIGHT_BITS):
        return f"the KV dtype is {kv_dtype}; allowed: {dtype}, {EIGHT_BITS}"
    if dim % 16 or page_size % 16 or group > 16:
        return f"head size {dim}, page size {page_size} or group {group} does not fit its tiles"
    if Pipeline.of(shape.block_bytes) is None:
        return f"pages of {shape.block_bytes} bytes are too large"
    if _softmax_bytes(shape) > _shared_bytes(shape, fetch=True):
        return f"head size {dim} with groups of {group} leaves no room in pages of {shape.block_bytes} bytes"
    try:
        _kernel(shape, Modes(dense=False, fetch=True, cpu=True))
    except UnavailableError as error:
        return str(error)
    return None


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "out", "split_out", "split_lse", "arrived")),
        *((name, ctypes.c_void_p) for name in ("frames", "host", "staged", "hits", "misses", "valid")),
        *(
            (name, ctypes.c_void_p)
            for name in ("num_hits", "num_selected", "page_table", "step", "missed_at")
        ),
        *(
            (f"stride_{name}", ctypes.c_longlong)
            for name in ("qb", "qh", "ob", "oh", "fh", "ff", "hn", "hh", "th", "list")
        ),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("lists", "splits", "heads", "width", "room")),
        ("factor", ctypes.c_float),
    ]


class _Offload(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                "entries",
                "counts",
                "doorbell",
                "num_runners_up",
                "costs",
                "timings",
                "cost_scales",
                "load_quota",
            )
        ),
        *((name, ctypes.c_int) for name in ("width", "layer", "layers", "blocks")),
    ]


class _OffloadArguments(_Arguments):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("cpu_out", "cpu_lse", "cpu_begin")),
        ("offload", _Offload),
    ]


class _Tail(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("lse", "values", "scales", "pages", "num_pages")),
        *((f"stride_{name}", ctypes.c_longlong) for name in ("h", "b")),
        *((name, ctypes.c_int) for name in ("width", "page_bytes")),
        *((name, ctypes.c_void_p) for name in ("split_lse", "coverage", "slots")),
        ("stride_c", ctypes.c_longlong),
    ]


class _TailArguments(_Arguments):
    _fields_ = [("tail", _Tail)]


class _OffloadTailArguments(_OffloadArguments):
    _fields_ = [("tail", _Tail)]


class Modes(NamedTuple):
    """What a variant of the kernel does."""

    dense: bool
    """Attend whole page lists."""
    fetch: bool
    """Attend misses from host memory."""
    cpu: bool
    """Offload to the CPU."""
    tail: bool = False
    """Attend the pages left out."""

    @property
    def arguments(self) -> type[_Arguments]:
        """The kernel's parameter."""
        if self.tail:
            return _OffloadTailArguments if self.cpu else _TailArguments
        return _OffloadArguments if self.cpu else _Arguments


_AnyArguments = TypeVar("_AnyArguments", bound=_Arguments)


def _defines(shape: Shape, modes: Modes) -> dict[str, int | str]:
    """The source's macros."""
    pipeline = shape.pipeline
    tail = TailPipeline.of(shape.dim, shape.group, pipeline.warps) if modes.tail else TailPipeline(0, 0)
    return {
        "BF16": int(shape.dtype == torch.bfloat16),
        "EIGHT_BITS": int(shape.kv_dtype == EIGHT_BITS),
        "DIM": shape.dim,
        "PAGE": shape.page_size,
        "GROUP": shape.group,
        "WARPS": pipeline.warps,
        "STAGES": pipeline.stages,
        "MISS_STAGES": 1,
        "FETCHERS": FETCHERS,
        "DENSE": int(modes.dense),
        "FETCH": int(modes.fetch),
        "CPU": int(modes.cpu),
        "BLOCKS": pipeline.blocks,
        "TAIL_WARPS": tail.warps,
        "TAIL_TILES": tail.tiles,
        "ARGUMENTS_BYTES": ctypes.sizeof(modes.arguments),
        "LINE_WORDS": LINE,
        "TAG_SHIFT": TAG_SHIFT,
        "TOKEN_BITS": TOKEN_BITS,
        "TIMESTAMPS_BYTES": 8 * len(TIMESTAMPS),
        "LISTS_AT_ONCE": LISTS_AT_ONCE,
    }


@functools.cache
def _kernel(shape: Shape, modes: Modes) -> tuple[Kernel, int, int]:
    """Kernel, threads of a block and shared memory of a launch."""
    shared, defines = _shared_bytes(shape, modes.fetch), _defines(shape, modes)
    return compile_kernel("attend.cu", "attend", defines, shared), 32 * _warps(shape, modes), shared


def _warps(shape: Shape, modes: Modes) -> int:
    pages = shape.pipeline.warps
    tail = TailPipeline.of(shape.dim, shape.group, pages).warps if modes.tail else 0
    return pages + int(modes.fetch) + tail


def _shared_bytes(shape: Shape, fetch: bool) -> int:
    """Of a block's pages in flight."""
    pipeline = shape.pipeline
    return (pipeline.warps * pipeline.stages + int(fetch)) * shape.block_bytes


def _softmax_bytes(shape: Shape) -> int:
    """Of all softmaxes of a block, which take the place of its pages in the end: head tiles of 8, and outputs."""
    tops_and_totals = 2 * 8 * -(-shape.group // 8)
    warps = _warps(shape, Modes(dense=False, fetch=True, cpu=False, tail=True))
    return 4 * warps * (tops_and_totals + shape.group * shape.dim)


def attend_selected(
    q: torch.Tensor,
    frames: torch.Tensor,
    host: torch.Tensor | None,
    selected: Selected,
    scale: float,
    page_size: int,
    workspace: Workspace,
    out: torch.Tensor | None,
    staged: torch.Tensor | None = None,
    offload: CpuOffload | None = None,
    cpu_begin: torch.Tensor | None = None,
    layer: int = 0,
    runners_up: RunnersUp | None = None,
    tail: Tail | None = None,
    factor: float = 1.0,
) -> None:
    """Attend the selected pages of each KV head: hits from frames and, if ``host`` is given, misses from there.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, contiguous in ``D``; bfloat16 or float16.
    frames
        One layer's frames, ``[H, F, 2, D * P]``; the dtype of ``q``, or of 8 bits.
    host
        One layer's host pages, ``[N, H, 2, D * P]``, pinned; None to attend hits only. The dtype of ``frames``.
    selected
        The selection.
    scale
        Softmax scale.
    page_size
        Tokens per page.
    workspace
        Buffers for these lists.
    out
        Attention output, ``[B, Hq, D]``, contiguous in ``D``, the dtype of ``q``; None to leave the merging of
        ``workspace.parts`` to `merge`.
    staged
        ``[B * H, room, 2, D * P]``: the first ``room`` missed pages of each list are kept here on the way.
    offload
        If given, the last misses of every list are offloaded to the CPU, as many as the cost model says, and its
        output is merged; needs ``host``, ``out`` and ``cpu_begin``. The queries have been sent, see `send_queries`.
    cpu_begin
        The first column that the CPU attends, ``[B, H]``, int32, contiguous; written.
    layer
        The doorbell's task.
    runners_up
        Pages that the selection left out and that may be loaded as far as the bus has time.
    tail
        If given, the pages left out are attended, too, each as if its tokens all had the page's mean V. With ``out``,
        its ``coverage`` counts the share of attention that all other pages have.
    factor
        Of pages of 8 bits, ``out`` is multiplied by it before it is rounded.

    Notes
    -----
    The kernel in front of this one in the stream must be the one that makes the selection, and must not be q's; this
    one begins while it ends.

    Reads a page, ``2 * D * P`` numbers, once for the whole GQA group, in one bulk copy; a multiprocessor has up to 224
    KB of them in flight. Bound by device memory for the hits and by PCIe for the misses, which one warp of every
    block attends meanwhile. Offloading takes posted writes over PCIe, 8 bytes a page in whole lines of 128, that
    nothing waits for. Of a page left out, ``D / 2 + 1`` bytes are read and 4 for each query head, by warps of their
    own that keep up to 64 such pages in flight; bound by their latency, mostly hidden behind the selected pages.
    """
    pairs, shape = q.shape[0] * frames.shape[0], _shape(q, frames, page_size)
    modes = Modes(False, host is not None, offload is not None, tail is not None)
    arguments = _arguments(
        modes.arguments, q, frames, frames if host is None else host, scale, workspace, out, factor
    )
    arguments.hits, arguments.misses = selected.hits.data_ptr(), selected.misses.data_ptr()
    arguments.valid = selected.valid.data_ptr()
    arguments.num_hits, arguments.num_selected = (
        selected.num_hits.data_ptr(),
        selected.num_selected.data_ptr(),
    )
    arguments.width = arguments.stride_list = selected.hits.shape[2]
    if staged is not None:
        arguments.staged, arguments.room = staged.data_ptr(), staged.shape[1]
    if offload is not None and cpu_begin is not None:
        arguments.step = offload.step.data_ptr()
        arguments.cpu_out, arguments.cpu_lse = offload.out.data_ptr(), offload.lse.data_ptr()
        arguments.cpu_begin, arguments.offload = cpu_begin.data_ptr(), _offload(offload, layer, runners_up)
        arguments.offload.blocks = offload_blocks(pairs, shape.pipeline)
    if tail is not None:
        arguments.tail = _tail(tail, workspace.tail_lse)
    blocks = pairs * workspace.parts.splits + (0 if offload is None else arguments.offload.blocks)
    _launch(shape, modes, blocks, arguments)


def attend_dense(
    q: torch.Tensor,
    frames: torch.Tensor,
    host: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    page_table: torch.Tensor,
    scale: float,
    page_size: int,
    workspace: Workspace,
    out: torch.Tensor,
    missed_at: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
    factor: float = 1.0,
) -> None:
    """Attend all pages of each request, from their frames where they have one and from host pages otherwise.

    Parameters
    ----------
    q, frames, host, scale, page_size, workspace, out, factor
        See `attend_selected`.
    pages
        Page lists, ``[B, M]``, int32.
    seq_lens
        Tokens of each request, ``[B]``, int32; 0 for a padded row, whose output is 0.
    page_table
        One layer's page table, ``[H, N]``, int32, negative = no frame.
    missed_at, step
        Scalars, int32: ``missed_at`` becomes ``step`` if any page had no frame.
    """
    arguments = _arguments(_Arguments, q, frames, host, scale, workspace, out, factor)
    arguments.hits, arguments.num_hits = pages.data_ptr(), seq_lens.data_ptr()
    arguments.page_table, arguments.stride_th = page_table.data_ptr(), page_table.stride(0)
    arguments.width, arguments.stride_list = pages.shape[1], pages.stride(0)
    if missed_at is not None and step is not None:
        arguments.missed_at, arguments.step = missed_at.data_ptr(), step.data_ptr()
    blocks = q.shape[0] * frames.shape[0] * workspace.parts.splits
    _launch(_shape(q, frames, page_size), Modes(True, False, False), blocks, arguments)


def _shape(q: torch.Tensor, frames: torch.Tensor, page_size: int) -> Shape:
    return Shape(q.shape[2], page_size, q.shape[1] // frames.shape[0], q.dtype, frames.dtype)


def _offload(cpu: CpuOffload, layer: int, runners_up: RunnersUp | None) -> _Offload:
    shared = ("entries", "counts", "doorbell", "costs", "timings", "cost_scales", "load_quota")
    return _Offload(
        **{name: getattr(cpu, name).data_ptr() for name in shared},
        num_runners_up=None if runners_up is None else runners_up.counts.data_ptr(),
        width=cpu.entries.shape[2],
        layer=layer,
        layers=cpu.layers,
    )


def _tail(tail: Tail, split_lse: torch.Tensor) -> _Tail:
    summaries, layout, coverage = tail.summaries, tail.layout, tail.coverage
    if not tail.lse.is_contiguous() or summaries.stride()[1:] != (layout.width, 1):
        raise ValueError(
            f"the tail's estimates have strides {tail.lse.stride()} and its summaries {summaries.stride()}; "
            f"allowed: contiguous, and pages of {layout.width} bytes one after the other"
        )
    first = summaries.data_ptr()
    counted = coverage and {
        "split_lse": split_lse.data_ptr(),
        "coverage": coverage.shares.data_ptr(),
        "slots": coverage.slots.data_ptr(),
        "stride_c": coverage.shares.stride(0),
    }
    return _Tail(
        lse=tail.lse.data_ptr(),
        values=first + layout.value_offset,
        scales=first + layout.scales_offset + GROUPS + CENTRE_GROUPS,
        pages=tail.pages.data_ptr(),
        num_pages=None if tail.num_pages is None else tail.num_pages.data_ptr(),
        stride_h=summaries.stride(0),
        stride_b=tail.pages.stride(0),
        width=tail.lse.shape[2],
        page_bytes=layout.width,
        **(counted or {}),
    )


def _arguments(
    kind: type[_AnyArguments],
    q: torch.Tensor,
    frames: torch.Tensor,
    host: torch.Tensor,
    scale: float,
    workspace: Workspace,
    out: torch.Tensor | None,
    factor: float,
) -> _AnyArguments:
    arguments = kind(
        q=q.data_ptr(),
        split_out=workspace.parts.out.data_ptr(),
        split_lse=workspace.parts.lse.data_ptr(),
        arrived=workspace.arrived.data_ptr(),
        frames=frames.data_ptr(),
        host=host.data_ptr(),
        stride_qb=q.stride(0),
        stride_qh=q.stride(1),
        stride_fh=frames.stride(0),
        stride_ff=frames.stride(1),
        stride_hn=host.stride(0),
        stride_hh=host.stride(1),
        scale=scale * LOG2_E,
        lists=q.shape[0] * frames.shape[0],
        splits=workspace.parts.splits,
        heads=frames.shape[0],
        factor=factor,
    )
    if out is not None:
        arguments.out, arguments.stride_ob, arguments.stride_oh = out.data_ptr(), out.stride(0), out.stride(1)
    return arguments


def _launch(shape: Shape, modes: Modes, blocks: int, arguments: _Arguments) -> None:
    """Launch the kernel for a shape and modes."""
    kernel, threads, shared = _kernel(shape, modes)
    kernel.launch((blocks, 1, 1), threads, shared, arguments, early=not modes.dense)
