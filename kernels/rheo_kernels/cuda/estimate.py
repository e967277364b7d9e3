"""estimate: the attention that each page draws, for every query head, and every page's share of it, in CUDA C++."""

from __future__ import annotations

import ctypes
import functools

import torch

from rheo_kernels.cuda.compile import Kernel, UnavailableError, compile_kernel
from rheo_kernels.types.corrections import CORRECTION_STEP, Corrections
from rheo_kernels.types.estimates import LEAST_SCORE, PAGES_PER_BLOCK, Estimates
from rheo_kernels.types.prefix_pairs import PrefixPairs
from rheo_kernels.types.subcentroids import SubcentroidLayout

LOG2_E = 1.4426950408889634
SOURCE = "estimate.cu"
SHARES_SOURCE = "log_shares.cu"
WARPS = 4
MOST_UNITS = 4
"""Units of pages that a warp takes at most: beyond that, its queries cost little, and requests of different lengths are
spread unevenly."""
SHARE_THREADS = 256
PAGES_PER_THREAD = 2
MIN_CAPABILITY = (9, 0)
DIMS = (64, 128, 256)
ROWS = (2, 4, 8, 16)
MOST_GROUP = 16
MOST_PAIRED_GROUP = 4
"""Query heads per KV head with which pairs of requests are estimated together. Larger groups would need a second
product for every unit, also in batches whose requests share nothing."""


class _Arguments(ctypes.Structure):
    """The parameter of `estimate`; the source says what each field is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "summaries", "pages", "seq_lens", "lse", "block_lse")),
        *((name, ctypes.c_void_p) for name in ("partner", "shared_units")),
        *((f"stride_{name}", ctypes.c_longlong) for name in ("qb", "qh", "sh", "pb")),
        *((name, ctypes.c_float) for name in ("scale", "inverse_scale", "noise_scale")),
        *((name, ctypes.c_int) for name in ("heads", "width", "words_per_length")),
    )


class _ShareArguments(ctypes.Structure):
    """The parameter of `log_shares`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("lse", "block_lse", "seq_lens", "codes", "rows", "out")),
        *((f"stride_{name}", ctypes.c_longlong) for name in ("cr", "ch", "ob", "oh")),
        *((name, ctypes.c_int) for name in ("heads", "width", "blocks", "page_size", "words_per_length")),
    )


def unsupported(
    layout: SubcentroidLayout, group: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why the kernels cannot serve a shape, with queries of ``dtype``, here; None where they can."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return "it needs an NVIDIA GPU of compute capability 9.0 or later"
    if (reason := unsupported_shape(layout, group, dtype)) is not None:
        return reason
    try:
        for paired in (False, True)[: 1 + (group <= MOST_PAIRED_GROUP)]:
            _kernel(layout, group, dtype, paired)
        _share_kernel(group)
    except UnavailableError as error:
        return str(error)
    return None


def pairs_requests(layout: SubcentroidLayout, group: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `estimate` serves a shape here, two requests at a time where they begin with the same pages."""
    return group <= MOST_PAIRED_GROUP and unsupported(layout, group, dtype, device) is None


def unsupported_shape(layout: SubcentroidLayout, group: int, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot serve a shape on any GPU; None where they can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"queries are {dtype}; allowed: bfloat16, float16"
    if layout.head_dim not in DIMS:
        return f"head size {layout.head_dim}; allowed: {', '.join(map(str, DIMS))}"
    if layout.rows not in ROWS:
        return f"{layout.rows} rows a page; allowed: {', '.join(map(str, ROWS))}"
    if not 1 <= group <= MOST_GROUP:
        return f"{group} query heads per KV head; allowed: 1 to {MOST_GROUP}"
    return None


def estimate(
    q: torch.Tensor,
    summaries: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    layout: SubcentroidLayout,
    out: Estimates | None = None,
    pairs: PrefixPairs | None = None,
) -> Estimates:
    """Estimate the log-sum-exp of every page's logits; see `rheo_kernels.reference.estimate`.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, bfloat16 or float16, contiguous in ``D``, other strides a multiple of 4. They are
        multiplied as float16: beyond its range, estimates are finite, but wrong.
    summaries
        One layer's summaries, ``[H, N, W]``, uint8, contiguous in ``N`` and ``W``.
    pages
        Page lists, ``[B, M]``, int32 logical pages, contiguous in ``M``; entries past a request's last page are
        ignored.
    seq_lens
        Tokens of each request, ``[B]``, int32 or int64, below ``2**31``; 0 in a padding row.
    scale
        Softmax scale.
    layout
        Of the summaries.
    out
        Result buffers.
    pairs
        Requests that begin with the same pages, whose summaries are then read once for two; nothing else changes. For
        groups above `MOST_PAIRED_GROUP` they are not looked at.

    Returns
    -------
    Estimates
        ``out``.

    Raises
    ------
    ValueError
        If a tensor has another dtype or layout, or the shape is one of `unsupported_shape`.
    UnavailableError
        If the kernel cannot be compiled here.

    Notes
    -----
    Reads the first ``layout.value_offset`` bytes of every listed page once for the whole group, of pages that a pair
    shares once for both, and writes 4 bytes for each page and query head, and for each `PAGES_PER_BLOCK` of them.
    Bound by HBM where there are many pages, by latency where there are few: about 1000 instructions of a warp for 8
    pages of 8 rows (``D = 128``, groups of up to 8). The launch overlaps the end of the kernel in front of it, and
    lets the one behind it begin.
    """
    batch, queries, _ = q.shape
    heads, width = summaries.shape[0], pages.shape[1]
    group = queries // heads
    if (reason := unsupported_shape(layout, group, q.dtype)) is not None:
        raise ValueError(f"estimate does not run in CUDA C++: {reason}")
    if out is None:
        out = Estimates.allocate(batch, queries, width, q.device)
    if summaries.stride(1) != layout.width or any(
        stride % 4 for stride in (*q.stride()[:2], summaries.stride(0))
    ):
        raise ValueError(
            f"summaries have strides {summaries.stride()} and q has {q.stride()}; allowed: pages of {layout.width} "
            "bytes next to each other, other strides a multiple of 4"
        )
    paired = pairs is not None and group <= MOST_PAIRED_GROUP
    arguments = _Arguments(
        _address("q", q, torch.bfloat16, torch.float16),
        _address("summaries", summaries, torch.uint8),
        _address("pages", pages, torch.int32),
        _address("seq_lens", seq_lens, torch.int32, torch.int64),
        _address("out.lse", out.lse, torch.float32, whole=True),
        _address("out.block_lse", out.block_lse, torch.float32, whole=True),
        None if pairs is None else _address("pairs.partner", pairs.partner, torch.int32),
        None if pairs is None else _address("pairs.units", pairs.units, torch.int32),
        q.stride(0),
        q.stride(1),
        summaries.stride(0),
        pages.stride(0),
        scale * LOG2_E,
        1 / (scale * LOG2_E),
        scale * scale * LOG2_E / 24,
        heads,
        width,
        seq_lens.element_size() // 4,
    )
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    at_once = processors * resident_blocks(layout, group * (1 + paired))
    grid = (launch_blocks(batch * heads, width, at_once), batch * heads, 1)
    _kernel(layout, group, q.dtype, paired).launch(grid, 32 * WARPS, 0, arguments, early=True)
    return out


def resident_blocks(layout: SubcentroidLayout, queries: int) -> int:
    """Blocks of a multiprocessor at once, for ``queries`` of a warp; what more of them would need, spills."""
    return 4 - (layout.head_dim > 128) - (queries > 8)


def launch_blocks(pairs: int, width: int, at_once: int) -> int:
    """Blocks for each of ``pairs`` page lists of up to ``width`` pages.

    As many as run ``at_once``, but each warp takes `MOST_UNITS` at most.
    """
    units = -(-width // PAGES_PER_BLOCK)
    each = min(max(-(-units * pairs // (at_once * WARPS)), 1), MOST_UNITS)
    return max(-(-units // (WARPS * each)), 1)


def log_shares(
    estimates: Estimates,
    seq_lens: torch.Tensor,
    page_size: int,
    out: torch.Tensor,
    corrections: Corrections | None = None,
) -> torch.Tensor:
    """Every page's share of the estimated attention, averaged over the query heads of a group.

    Parameters
    ----------
    estimates
        From `estimate`.
    seq_lens
        Tokens of each request, ``[B]``, int32 or int64, below ``2**31``.
    page_size
        Tokens per page.
    out
        Result buffer, ``[B, H, M]``, float32, contiguous in ``M``.
    corrections
        Added to the result.

    Returns
    -------
    torch.Tensor
        ``out``: natural logarithms of shares that add up to 1 for every request and KV head, at least `LEAST_SCORE`,
        and corrections; ``-inf`` past the last page.

    Raises
    ------
    ValueError
        If a tensor has another dtype or layout, or there are more than `MOST_GROUP` query heads per KV head.
    UnavailableError
        If the kernel cannot be compiled here.

    Notes
    -----
    Reads 4 bytes for each page and query head, a byte more for a correction, and every block of threads all blocks'
    LSE; bound by latency. The
    launch overlaps the end of the kernel in front of it, which must be the one that wrote the estimates, and lets the
    one behind it begin.
    """
    batch, heads, width = out.shape
    queries, blocks = estimates.block_lse.shape[1:]
    group = queries // heads
    if not 1 <= group <= MOST_GROUP:
        raise ValueError(f"{group} query heads per KV head; allowed: 1 to {MOST_GROUP}")
    codes: int | None = None
    rows: int | None = None
    strides: tuple[int, ...] = (0, 0)
    if corrections is not None:
        codes = _address("corrections.codes", corrections.codes, torch.int8)
        rows = _address("corrections.rows", corrections.rows, torch.int32)
        strides = corrections.codes.stride()[:2]
    arguments = _ShareArguments(
        _address("estimates.lse", estimates.lse, torch.float32, whole=True),
        _address("estimates.block_lse", estimates.block_lse, torch.float32, whole=True),
        _address("seq_lens", seq_lens, torch.int32, torch.int64),
        codes,
        rows,
        _address("out", out, torch.float32),
        *strides,
        out.stride(0),
        out.stride(1),
        heads,
        width,
        blocks,
        page_size,
        seq_lens.element_size() // 4,
    )
    grid = (-(-width // (SHARE_THREADS * PAGES_PER_THREAD)), batch * heads, 1)
    _share_kernel(group).launch(grid, SHARE_THREADS, 0, arguments, early=True)
    return out


def defines(
    layout: SubcentroidLayout, group: int, dtype: torch.dtype, paired: bool = False
) -> dict[str, int | str]:
    """Macros of `estimate` for a shape."""
    return {
        "BF16": int(dtype == torch.bfloat16),
        "DIM": layout.head_dim,
        "PAGE": layout.page_size,
        "ROWS": layout.rows,
        "GROUP": group,
        "PAIRS": int(paired),
        "CENTRE_BITS": layout.centre_bits,
        "CENTRE": layout.centre_offset,
        "SCALES": layout.scales_offset,
        "WIDTH": layout.width,
        "PAGES_PER_BLOCK": PAGES_PER_BLOCK,
        "WARPS": WARPS,
        "BLOCKS": resident_blocks(layout, group * (1 + paired)),
        "PDL": 1,
    }


def share_defines(group: int) -> dict[str, int | str]:
    """Macros of `log_shares` for a group."""
    return {
        "LEAST_SCORE": f"({LEAST_SCORE}f)",
        "CORRECTION_STEP": f"({CORRECTION_STEP}f)",
        "GROUP": group,
        "WARPS": SHARE_THREADS // 32,
        "ITEMS": PAGES_PER_THREAD,
        "PDL": 1,
    }


@functools.cache
def _kernel(layout: SubcentroidLayout, group: int, dtype: torch.dtype, paired: bool) -> Kernel:
    return compile_kernel(SOURCE, "estimate", defines(layout, group, dtype, paired))


@functools.cache
def _share_kernel(group: int) -> Kernel:
    return compile_kernel(SHARES_SOURCE, "log_shares", share_defines(group))


def _address(name: str, tensor: torch.Tensor, *dtypes: torch.dtype, whole: bool = False) -> int:
    """Address of a tensor whose last dimension, or ``whole``, is contiguous."""
    contiguous = tensor.is_contiguous() if whole else tensor.stride(-1) == 1 or tensor.shape[-1] <= 1
    if tensor.dtype not in dtypes or not contiguous:
        raise ValueError(
            f"{name} has dtype {tensor.dtype} and strides {tensor.stride()}; "
            f"allowed: {' or '.join(map(str, dtypes))}, {'' if whole else 'last dimension '}contiguous"
        )
    return tensor.data_ptr()
