"""Pool sizes and pools of a server that is starting, from SGLang's configurator."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Protocol

import torch

from rheo_sglang.config import RheoConfig
from rheo_sglang.errors import ConfigError
from rheo_sglang.kv_dtypes import compute_dtype
from rheo_sglang.pools.dram import available_dram
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.pools.plan import (
    GIB,
    MOST_FRAMES,
    MOST_REQUESTS,
    DecodeBytes,
    KVShape,
    PoolPlan,
    frames_asked,
    plan_pools,
    plan_requests,
)

logger = logging.getLogger(__name__)

_plan: PoolPlan | None = None
"""The plan of this process, which runs one model; SGLang's configurator has no room for attributes."""


def planned() -> PoolPlan | None:
    """The plan of this process, or None if its model is not served by rheo."""
    return _plan


def kv_shape(configurator: Any) -> KVShape:
    """Shape of this rank's KV."""
    from sglang.srt.runtime_context import get_parallel

    model = configurator.model_config
    return KVShape(
        layers=configurator.layer_info.num_effective_layers,
        kv_heads=model.get_num_kv_heads(get_parallel().attn_tp_size),
        head_dim=model.head_dim,
        dtype=configurator.kv_cache_dtype,
        page_size=configurator.page_size,
        compute_dtype=compute_dtype(configurator.kv_cache_dtype, model.dtype),
    )


class StepBuffers(Protocol):
    """Knows what is kept for the requests of decode steps, and what it takes."""

    @property
    def captured(self) -> int:
        """Requests of the largest captured step; 0 if none is."""
        ...

    @property
    def share(self) -> float:
        """Of the memory, for requests whose number is not given."""
        ...

    def of(self, requests: int) -> DecodeBytes:
        """Bytes of all that there is of steps of up to so many requests."""
        ...


def make_plan(configurator: Any, device_bytes: int, buffers: StepBuffers | None = None) -> int:
    """Plan both pools of this process.

    Parameters
    ----------
    configurator
        SGLang's ``KVCacheConfigurator``.
    device_bytes
        Device memory that SGLang would give the KV cache.
    buffers
        Of decode steps, where they have any.

    Returns
    -------
    int
        The host pool's size in bytes, of which SGLang derives the number of tokens.
    """
    global _plan
    shape = kv_shape(configurator)
    server_args = configurator.server_args
    if configurator.device != "cpu":
        staging = shape.staging_bytes(configurator.model_config.context_len)
        logger.info("rheo: %.2f GiB of device memory are kept for staging a prefix in prefill", staging / GIB)
        device_bytes = max(device_bytes - staging, 0)
    config = RheoConfig.from_environment()
    config.warn_of_budget()
    in_dram = configurator.device == "cpu"
    device_bytes, dram_bytes = agree(device_bytes), agree(rank_dram(server_args.nnodes))
    requests, decode = None, DecodeBytes(0, 0)
    if buffers is not None:
        asked = server_args.max_running_requests
        if asked is not None and server_args.enable_dp_attention:
            asked = max(asked // server_args.dp_size, 1)
        most = frames_asked(config, shape) or MOST_REQUESTS
        room = dram_bytes if in_dram else device_bytes
        requests = agree(
            plan_requests(
                buffers.of, asked, buffers.captured, min(most, MOST_FRAMES), room, in_dram, buffers.share
            )
        )
        decode = buffers.of(requests)
        logger.info(
            "rheo: %.2f GiB of %s and %.2f GiB of pinned memory are kept for decode steps of up to %d requests",
            decode.device / GIB,
            "DRAM" if in_dram else "device memory",
            decode.pinned / GIB,
            requests,
        )
    plan = plan_pools(
        config,
        shape,
        agree(device_bytes if in_dram else device_bytes - decode.device),
        dram_bytes=agree(max(dram_bytes - decode.pinned - in_dram * decode.device, 0)),
        max_total_tokens=server_args.max_total_tokens,
        frames_in_dram=in_dram,
    )
    summary = config.page_summary(shape.head_dim, shape.page_size, shape.computed_in)
    _plan = replace(plan, requests=requests, corrects=config.corrects_estimates(summary))
    return _plan.host_pages * shape.page_bytes


def agree(size: int) -> int:
    """The smallest value of any rank: pools that the scheduler can observe have one size everywhere."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return size
    from sglang.srt.runtime_context import get_parallel

    value = torch.tensor(size, dtype=torch.int64)
    group = get_parallel().world_group.cpu_group
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MIN, group=group)
    return int(value)


def rank_dram(nodes: int) -> int:
    """Bytes of available DRAM for this rank's host pool; the ranks of a host share it evenly."""
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return available_dram() // max(1, ranks // nodes)


def running_limit(configurator: Any, requests: int) -> int:
    """Requests that may run at once: every one keeps its tail page resident, and has a row in buffers of decode steps.

    Raises
    ------
    ConfigError
        If the user asked for more than the frame pool can hold.
    """
    assert _plan is not None
    frames = _plan.frame_pages
    asked = configurator.server_args.max_running_requests
    if requests > frames and asked is not None:
        raise ConfigError(
            f"rheo: --max-running-requests={asked} needs as many frames for the pages being written, but the frame "
            f"pool has {frames}; allowed: at most {frames}, or a larger frame_pool_gib or frame_pool_tokens"
        )
    if requests > frames:
        logger.info("rheo: at most %d requests run at once, for each keeps one of as many frames", frames)
        requests = frames
    if _plan.requests is not None and requests > _plan.requests:
        requests = _plan.requests
        logger.info(
            "rheo: at most %d requests run at once, for which there are buffers of decode steps; "
            "--max-running-requests chooses their number",
            requests,
        )
    return requests


def build_kv_pool(configurator: Any, tokens: int) -> RheoKVPool:
    """Build the pool of ``tokens`` logical tokens with the planned frames."""
    assert _plan is not None
    shape = kv_shape(configurator)
    return RheoKVPool(
        tokens,
        shape.page_size,
        configurator.kv_cache_dtype,
        shape.kv_heads,
        shape.head_dim,
        shape.layers,
        configurator.device,
        frame_pages=_plan.frame_pages,
        config=RheoConfig.from_environment(),
        start_layer=configurator.layer_info.start_layer,
        end_layer=configurator.layer_info.end_layer,
        compute_dtype=shape.compute_dtype,
    )
