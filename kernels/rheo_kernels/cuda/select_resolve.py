"""select_resolve: choose each request's pages and look them up in the page table, as a CUDA C++ kernel."""

from __future__ import annotations

import ctypes

import torch

from rheo_kernels.cuda.compile import Kernel, compile_kernel
from rheo_kernels.types import HitCounters, ResidencyBonus, RunnersUp, Selected, Stamps

SOURCE = "select_resolve.cu"
MAX_PAGES = 2**15
MIN_THREADS = 128
MAX_THREADS = 1024
ITEMS_PER_LOAD = 4


class _Arguments(ctypes.Structure):
    """The kernel's parameter; the source says what each field is."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "scores",
                "pages",
                "num_pages",
                "seq_lens",
                "budget",
                "page_table",
                *(f"out_{field}" for field in Selected._fields),
                "out_runners_up",
                "out_num_runners_up",
                "lse",
                "accessed",
                "rates",
                "hit_total",
                "selected_total",
                "slots",
                "step",
                "stamped",
                "floors",
            )
        ),
        *(
            (f"stride_{name}", ctypes.c_int64)
            for name in ("sb", "sh", "pb", "bb", "bh", "th", "ah", "cr", "mh")
        ),
        *(
            (name, ctypes.c_int32)
            for name in (
                "columns",
                "width",
                "runners_up",
                "sink_pages",
                "window_pages",
                "page_size",
                "words_per_length",
                "group",
            )
        ),
        ("bonus", ctypes.c_float),
    )


def select_resolve(
    scores: torch.Tensor,
    pages: torch.Tensor,
    num_pages: torch.Tensor,
    seq_lens: torch.Tensor,
    budget: torch.Tensor,
    page_table: torch.Tensor,
    page_size: int,
    sink_pages: int,
    window_pages: int,
    out: Selected,
    accessed: torch.Tensor | None = None,
    counters: HitCounters | None = None,
    runners_up: RunnersUp | None = None,
    lse: torch.Tensor | None = None,
    stamps: Stamps | None = None,
    bonus: ResidencyBonus | None = None,
) -> Selected:
    """Select pages as `select` does and resolve them as `resolve` does; list hits before misses.

    Takes and gives exactly what `rheo_kernels.triton.select_resolve` does, and lists runners-up.

    Parameters
    ----------
    scores
        Page scores, ``[B, H, M]``, float32.
    pages
        Page lists, ``[B, M]``, int32.
    num_pages, seq_lens
        Pages (int32) and tokens (int32 or int64, below ``2**31``) of each request, ``[B]``.
    budget
        Pages each request and KV head may select, ``[B, H]``, int32.
    page_table
        One layer's page table, ``[H, N]``, int32, negative = no frame.
    page_size
        Tokens per page.
    sink_pages, window_pages
        Always-selected pages at the start and at the end; of the latter at least the tail page.
    out
        Result buffers, contiguous.
    accessed
        One layer's accessed bits, ``[H, F]``, int8: set to 1 for every hit frame.
    counters
        The recorder's counters of this layer; updated atomically.
    runners_up
        Of about the best 48 pages that were not selected those that have no frame, as far as there is room, in any
        order; written.
    lse
        Estimates, ``[B, Hq, M]``, float32, contiguous: those of selected pages become ``-inf``, for every query head of
        a group.
    stamps
        This layer's stamps; those of selected pages become the current step.
    bonus
        Ranks pages, runners-up among them, by what `favour` makes of their scores, which stay as they are.

    Returns
    -------
    Selected
        ``out``. Within hits and within misses, pages keep the order of the request's page list.

    Raises
    ------
    ValueError
        If a tensor has another dtype or layout, or ``M`` exceeds `MAX_PAGES`.
    UnavailableError
        If the kernel cannot be compiled here.

    Notes
    -----
    Reads ``8 M`` bytes a row and 4 a selected page, writes ``20 S`` a row, 4 bytes an excluded estimate and 4 a
    stamp, on one multiprocessor per row. Bound by latency: three dependent reads of global memory and about ten
    barriers of one block. A bonus reads the page table for all pages, ``4 M`` bytes a row more, before it waits for the
    scores; that was not run on a GPU.
    """
    batch, heads, columns = scores.shape
    rates, hits, selected, slots = counters or (None, None, None, None)
    step, stamped = stamps or (None, None)
    nats, floors = bonus or (0.0, None)
    if lse is not None and not (lse.is_contiguous() and lse.shape[::2] == (batch, columns)):
        raise ValueError(
            f"lse has shape {tuple(lse.shape)} and strides {lse.stride()}; "
            f"allowed: ({batch}, query heads, {columns}), contiguous"
        )
    arguments = _Arguments(
        _address("scores", scores, torch.float32),
        _address("pages", pages, torch.int32),
        _address("num_pages", num_pages, torch.int32),
        _address("seq_lens", seq_lens, torch.int32, torch.int64),
        _address("budget", budget, torch.int32, any_stride=True),
        _address("page_table", page_table, torch.int32),
        *(
            _address(f"out.{name}", buffer, torch.int32)
            for name, buffer in zip(out._fields, out, strict=True)
        ),
        _address("runners_up.pages", runners_up and runners_up.pages, torch.int32),
        _address("runners_up.counts", runners_up and runners_up.counts, torch.int32),
        _address("lse", lse, torch.float32),
        _address("accessed", accessed, torch.int8),
        _address("counters.rates", rates, torch.float32),
        _address("counters.hits", hits, torch.int64),
        _address("counters.selected", selected, torch.int64),
        _address("counters.slots", slots, torch.int64),
        _address("stamps.step", step, torch.int32, any_stride=True),
        _address("stamps.selected", stamped, torch.int32),
        _address("bonus.floors", floors, torch.float32),
        scores.stride(0),
        scores.stride(1),
        pages.stride(0),
        budget.stride(0),
        budget.stride(1),
        page_table.stride(0),
        0 if accessed is None else accessed.stride(0),
        0 if rates is None else rates.stride(0),
        0 if stamped is None else stamped.stride(0),
        columns,
        out.pages.shape[2],
        0 if runners_up is None else runners_up.pages.shape[2],
        sink_pages,
        max(window_pages, 1),
        page_size,
        seq_lens.element_size() // 4,
        0 if lse is None else lse.shape[1] // heads,
        nats,
    )
    threads, items = block_shape(columns)
    _kernel(threads, items).launch((batch, heads, 1), threads, 0, arguments)
    return out


def block_shape(columns: int) -> tuple[int, int]:
    """Threads of a block, and the pages of each, for page lists of ``columns``.

    Raises
    ------
    ValueError
        Beyond `MAX_PAGES`.
    """
    if columns > MAX_PAGES:
        raise ValueError(f"page lists of {columns} columns are too wide; allowed: up to {MAX_PAGES}")
    room = 1 << max(columns - 1, 0).bit_length()
    threads = min(max(room // ITEMS_PER_LOAD, MIN_THREADS), MAX_THREADS)
    return threads, max(room // threads, ITEMS_PER_LOAD)


def defines(threads: int, items: int) -> dict[str, int]:
    """Macros of the variant with ``threads`` a block and ``items`` pages a thread."""
    return {"THREADS": threads, "ITEMS": items, "PDL": 1}


def _kernel(threads: int, items: int) -> Kernel:
    return compile_kernel(SOURCE, "select_resolve", defines(threads, items))


def _address(
    name: str, tensor: torch.Tensor | None, *dtypes: torch.dtype, any_stride: bool = False
) -> int | None:
    """Address of a tensor whose last dimension is contiguous."""
    if tensor is None:
        return None
    if tensor.dtype not in dtypes or not (any_stride or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1):
        raise ValueError(
            f"{name} has dtype {tensor.dtype} and strides {tensor.stride()}; "
            f"allowed: {' or '.join(map(str, dtypes))}, last dimension contiguous"
        )
    return tensor.data_ptr()
