"""How many host pages and frames a server gets."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch

from rheo_sglang.config import RheoConfig
from rheo_sglang.errors import ConfigError, reject
from rheo_sglang.selection import SUMMARIES, EstimatingSummary
from rheo_sglang.tiering import POLICIES

logger = logging.getLogger(__name__)

GIB = 1 << 30
DEFAULT_RATIO = 8.0
LEAST_HOST_PAGES = 2
"""What SGLang's scheduler sets aside for the shortest request: its tokens, and a page for growth."""
MOST_FRAMES = 2**16 - 1
"""Frames of a layer and KV head on a GPU: what the admission kernel can count."""
DRAM_SHARE = 0.8
"""Share of the available DRAM that the host pool takes at most when its size is not given."""
DECODE_SHARE = 1 / 16
"""Share of the device memory that buffers of decode steps take at most beyond those of captured ones, where the number
of requests is not given."""
CORRECTIONS_SHARE = 1 / 64
"""The same of corrections of estimates alone, which take as much for a short request as for the longest."""
MOST_REQUESTS = 4096
"""Most requests that SGLang runs at once where it is not told how many."""


@dataclass(frozen=True)
class KVShape:
    """What one page holds.

    Attributes
    ----------
    layers, kv_heads, head_dim
        Of this rank's part of the model.
    dtype
        KV dtype.
    page_size
        Tokens of a page.
    compute_dtype
        What attention computes in; the KV dtype by default.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    page_size: int
    compute_dtype: torch.dtype | None = None

    @property
    def computed_in(self) -> torch.dtype:
        """What attention computes in."""
        return self.compute_dtype or self.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's K and V over all layers and KV heads."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of one page's K and V over all layers and KV heads."""
        return self.page_size * self.token_bytes

    def staging_bytes(self, tokens: int) -> int:
        """HBM bytes that prefill stages a prefix of ``tokens`` in: two layers, and a quarter for growth."""
        token = self.token_bytes // self.layers // self.dtype.itemsize * self.computed_in.itemsize
        return tokens * 2 * token * 5 // 4

    def table_bytes(self, summary: str, policy: str = "importance") -> int:
        """HBM bytes that every logical page costs: its summaries, and 16 for each layer and KV head.

        Of these the page table takes 4, worth 4 and stamps 4; 4 are set aside for notes of pages and frames. What the
        policy keeps beside worth comes on top.
        """
        row_bytes = SUMMARIES[summary]().bytes_per_page(self.head_dim, self.page_size, self.computed_in)
        return self.layers * self.kv_heads * (row_bytes + 4 * 4 + POLICIES[policy].state_bytes)


@dataclass(frozen=True)
class PoolPlan:
    """Sizes of both pools, in pages over all layers and KV heads (the padding page not counted)."""

    host_pages: int
    frame_pages: int
    requests: int | None = None
    """Requests that buffers of decode steps are set aside for; None where they have none."""
    corrects: bool = False
    """Whether estimates are corrected by what a prompt's last tokens attend."""


class DecodeBytes(NamedTuple):
    """What buffers of decode steps take."""

    device: int
    """Where frames are."""
    pinned: int
    """In DRAM."""


def plan_requests(
    bytes_of: Callable[[int], DecodeBytes],
    asked: int | None,
    captured: int,
    most: int,
    device_bytes: int,
    in_dram: bool = False,
    share: float = DECODE_SHARE,
) -> int:
    """Requests that there is memory for in decode steps.

    Parameters
    ----------
    bytes_of
        What the buffers for a number of requests take; grows with it.
    asked
        SGLang's ``--max-running-requests``, or None.
    captured
        Requests of the largest captured step; 0 if none is.
    most
        No more can run.
    device_bytes
        Memory for these buffers, frames and the page table.
    in_dram
        Whether that is DRAM (``--device cpu``), not device memory.
    share
        Of it, for requests whose number is not given.

    Returns
    -------
    int
        ``asked``; or else as many as the share is enough for, and no fewer than are captured.

    Raises
    ------
    ConfigError
        If the buffers alone take all of the device memory.
    """
    requests = min(asked or max(captured, 1), most)
    if bytes_of(requests).device >= device_bytes:
        fit = _largest(bytes_of, requests, device_bytes - 1)
        flag = "--max-running-requests" if asked is not None else "--cuda-graph-max-bs-decode"
        allowed = "a smaller --context-length, budget or limit" + (f", or {flag} up to {fit}" if fit else "")
        raise ConfigError(
            f"rheo: buffers of decode steps of {requests} requests ({flag}) take "
            f"{bytes_of(requests).device / GIB:.2f} GiB, which the {device_bytes / GIB:.2f} GiB of "
            f"{'available DRAM' if in_dram else 'device memory that --mem-fraction-static leaves'} have no room for "
            f"beside frames; allowed: {allowed}"
        )
    if asked is not None:
        return requests
    return max(requests, _largest(bytes_of, most, int(device_bytes * share)))


def _largest(bytes_of: Callable[[int], DecodeBytes], most: int, room: int) -> int:
    """The most requests, up to ``most``, whose buffers fit into ``room`` bytes of device memory."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if bytes_of(middle).device <= room:
            low = middle
        else:
            high = middle - 1
    return low


def plan_pools(
    config: RheoConfig,
    shape: KVShape,
    device_bytes: int,
    dram_bytes: int,
    max_total_tokens: int | None,
    frames_in_dram: bool,
) -> PoolPlan:
    """Decide both pool sizes.

    Parameters
    ----------
    config
        Sizes the user asked for.
    shape
        What one page holds.
    device_bytes
        Device memory that SGLang would give the KV cache.
    dram_bytes
        Host memory that is available.
    max_total_tokens
        SGLang's ``--max-total-tokens``: a cap on the tokens the server may hold.
    frames_in_dram
        Whether the frame pool is a second DRAM pool (``--device cpu``).

    Raises
    ------
    ConfigError
        If the page summary does not serve the model's shape, a size asked for is not to be had, or the host pool would
        be smaller than the frame pool.
    """
    name = config.page_summary(shape.head_dim, shape.page_size, shape.computed_in)
    summary = SUMMARIES[name]()
    reason = summary.unsupported(shape.head_dim, shape.page_size, shape.computed_in)
    if reason is None and summary.kernels is None and not frames_in_dram:
        reason = "has no kernels for a GPU"
    if reason is not None:
        others = [other for other in SUMMARIES.names() if other != name]
        reject("summary", name, f"{', '.join(others)} ({name} {reason})", "rheo")
    rule = config.budget_rule()
    if rule.reads_scores and rule.allow_kernel is None and not frames_in_dram:
        reject(
            "budget",
            config.budget,
            "on a GPU, rules that do not read scores or have a kernel that does",
            "rheo",
        )
    if config.requests_may_grow and not isinstance(summary, EstimatingSummary):
        _reject_floor(config, name)
    if config.calibrate and not isinstance(summary, EstimatingSummary):
        _reject_without_estimates("calibrate", config.calibrate, "false", name)
    if config.residency_bonus and not isinstance(summary, EstimatingSummary):
        _reject_without_estimates("residency_bonus", config.residency_bonus, "0", name)
    table_bytes = shape.table_bytes(name, config.policy)
    frame_pages = frames_asked(config, shape)
    cause = "host_pool_gib" if config.host_pool_gib is not None else "host_pool_ratio"
    if config.host_pool_gib is not None:
        host_pages = int(config.host_pool_gib * GIB) // shape.page_bytes
    elif frame_pages is not None:
        host_pages = int(frame_pages * (config.host_pool_ratio or DEFAULT_RATIO))
    else:
        ratio = config.host_pool_ratio or DEFAULT_RATIO
        room = dram_bytes * DRAM_SHARE if frames_in_dram else device_bytes
        shares = (1 + 1 / ratio) if frames_in_dram else (1 / ratio)
        host_pages = int(room / (shape.page_bytes * shares + table_bytes))
    sized = config.host_pool_gib is not None or config.host_pool_ratio is not None
    if max_total_tokens is not None:
        asked = max_total_tokens // shape.page_size
        if not sized or asked < host_pages:
            host_pages, cause = asked, "--max-total-tokens"
    if frame_pages is None and frames_in_dram:
        derived_frames = 1 / (config.host_pool_ratio or DEFAULT_RATIO)
        dram_room = int(dram_bytes / (1 + derived_frames))
    else:
        dram_room = dram_bytes - (frame_pages or 0) * shape.page_bytes * frames_in_dram
    if sized and host_pages * shape.page_bytes > dram_room:
        _reject_large_host(config, shape, host_pages, dram_room, frame_pages)
    most = max(0, int(dram_room * DRAM_SHARE)) // shape.page_bytes
    if not sized and host_pages > most:
        host_pages = most
        logger.warning(
            "rheo: the host pool is cut to %.2f GiB, %d %% of the available DRAM; "
            "set host_pool_gib to choose its size",
            host_pages * shape.page_bytes / GIB,
            100 * DRAM_SHARE,
        )
    if frame_pages is None:
        if frames_in_dram:
            frame_pages = max(1, int(host_pages / (config.host_pool_ratio or DEFAULT_RATIO)))
        else:
            device_room = device_bytes - host_pages * table_bytes
            frame_pages = max(0, min(host_pages, device_room // shape.page_bytes, MOST_FRAMES))
    if not frames_in_dram and frame_pages > MOST_FRAMES:
        raise ConfigError(
            f"rheo: {_frames_setting(config)} is more than kernels can count; allowed: frame_pool_gib or "
            f"frame_pool_tokens up to {MOST_FRAMES * shape.page_size} tokens, or a larger --page-size"
        )
    least = max(frame_pages, LEAST_HOST_PAGES)
    if host_pages < least:
        _reject_small_host(config, shape, host_pages, least, cause, max_total_tokens)
    if not frames_in_dram and frame_pages * shape.page_bytes + host_pages * table_bytes > device_bytes:
        raise ConfigError(
            f"rheo: a frame pool of {frame_pages * shape.page_bytes / GIB:.2f} GiB and the page table of a host "
            f"pool of {host_pages * shape.page_bytes / GIB:.2f} GiB ({host_pages * table_bytes / GIB:.2f} GiB) do "
            f"not fit into the {device_bytes / GIB:.2f} GiB of device memory that --mem-fraction-static leaves; "
            "allowed: a smaller frame_pool_gib or host_pool_gib"
        )
    if frame_pages < 1:
        raise ConfigError(
            f"rheo: no frame of {shape.page_bytes / GIB:.6f} GiB fits into the {device_bytes / GIB:.6f} GiB of device "
            "memory that --mem-fraction-static leaves, beside the page table; allowed: a larger --mem-fraction-static, "
            "or a smaller host_pool_gib"
        )
    return PoolPlan(host_pages, frame_pages)


def _reject_floor(config: RheoConfig, summary: str) -> NoReturn:
    """Refuse a floor of the server's or of its requests with a summary that estimates no attention."""
    setting, allowed = "request_limit_ratio", "not given"
    if config.conservative != "off":
        setting, allowed = "conservative", "off"
    elif config.budget_settings().floor > 0:
        setting, allowed = "budget", "fixed"
    _reject_without_estimates(setting, getattr(config, setting), allowed, summary)


def _reject_without_estimates(setting: str, value: object, allowed: str, summary: str) -> NoReturn:
    """Refuse a setting that needs a summary which estimates attention."""
    estimating = [other for other in SUMMARIES.names() if issubclass(SUMMARIES[other], EstimatingSummary)]
    reject(
        setting,
        value,
        f"{allowed}, or a summary that estimates attention ({', '.join(estimating)}; {summary} does not)",
        "rheo",
    )


def frames_asked(config: RheoConfig, shape: KVShape) -> int | None:
    """Frames of a layer and KV head that the settings say; None where they say nothing."""
    if config.frame_pool_tokens is not None:
        frames = config.frame_pool_tokens // shape.page_size
        least = f"{shape.page_size} (one page)"
    elif config.frame_pool_gib is not None:
        frames = int(config.frame_pool_gib * GIB) // shape.page_bytes
        least = f"{_gib_up(shape.page_bytes)} (one page)"
    else:
        return None
    if frames < 1:
        name = "frame_pool_gib" if config.frame_pool_tokens is None else "frame_pool_tokens"
        reject(name, getattr(config, name), f"at least {least}", "rheo")
    return frames


def _frames_setting(config: RheoConfig) -> str:
    name = "frame_pool_gib" if config.frame_pool_tokens is None else "frame_pool_tokens"
    return f"{name}={getattr(config, name)!r}"


def _reject_large_host(
    config: RheoConfig, shape: KVShape, host_pages: int, dram_room: int, frame_pages: int | None
) -> NoReturn:
    """Refuse a host pool that was asked for and does not fit into DRAM."""
    most = max(0, dram_room)
    value: float | None
    if config.host_pool_gib is not None:
        name, value, limit = "host_pool_gib", config.host_pool_gib, _gib_down(most)
    else:
        name, value = "host_pool_ratio", config.host_pool_ratio
        limit = _gib_down(most) + " GiB in all"
        if frame_pages is not None:
            limit = f"{math.floor(1000 * (most // shape.page_bytes) / frame_pages) / 1000:g}"
    raise ConfigError(
        f"rheo: {name}={value!r} is a host pool of {host_pages * shape.page_bytes / GIB:.2f} GiB, which does not fit "
        f"into the available DRAM; allowed: up to {limit}, or fewer tokens by --max-total-tokens"
    )


def _reject_small_host(
    config: RheoConfig, shape: KVShape, host_pages: int, least: int, cause: str, max_total_tokens: int | None
) -> NoReturn:
    """Refuse a host pool that cannot hold every frame's page, or a request."""
    why = f"the frame pool has {least} pages, all of which the host pool holds too"
    if least == LEAST_HOST_PAGES:
        why = f"a request takes {LEAST_HOST_PAGES} pages"
    if cause == "host_pool_gib" and config.host_pool_gib is not None:
        reject(cause, config.host_pool_gib, f"at least {_gib_up(least * shape.page_bytes)} ({why})", "rheo")
    if cause == "--max-total-tokens" and max_total_tokens is not None:
        if least > LEAST_HOST_PAGES and (config.frame_pool_gib, config.frame_pool_tokens) != (None, None):
            frames = _frames_setting(config)
            raise ConfigError(
                f"rheo: {frames} is more than {cause}={max_total_tokens}, and the host pool holds all pages that "
                f"frames do; allowed: frames for up to {host_pages * shape.page_size} tokens, or {cause} of at least "
                f"{least * shape.page_size}"
            )
        reject(cause, max_total_tokens, f"at least {least * shape.page_size} ({why})", "rheo")
    raise ConfigError(
        f"rheo: the host pool has room for {host_pages} pages of {shape.page_bytes / GIB:.6f} GiB, but {why}; allowed: "
        f"more memory, or a smaller frame pool, for at least {least} pages"
    )


def _gib_up(size: int) -> str:
    """GiB that hold ``size`` bytes, with as few digits as serve."""
    return f"{-(-size * 10**6 // GIB) / 10**6:.10g}"


def _gib_down(size: int) -> str:
    """GiB that ``size`` bytes hold."""
    return f"{size * 10**6 // GIB / 10**6:.10g}"
