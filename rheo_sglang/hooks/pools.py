"""pools: the host pool, the frames and their allocator in the place of SGLang's."""

from __future__ import annotations

from typing import Any

from rheo_sglang.config import RheoConfig
from rheo_sglang.hooks.hook import Hook

CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"


def configure_pools(original: Any, configurator: Any, *args: Any, **kwargs: Any) -> Any:
    """Size and build pools for rheo's kernels, not for SGLang's."""
    from rheo_sglang import compat
    from rheo_sglang.validate import uses_rheo

    if not uses_rheo(configurator.server_args):
        return original(configurator, *args, **kwargs)
    with compat.without_cpu_kernels():
        return original(configurator, *args, **kwargs)


def size_logical_space(original: Any, configurator: Any, *args: Any, **kwargs: Any) -> int:
    """Report the host pool's bytes as what the KV cache has, and keep the device's for the frames."""
    from rheo_sglang.decode.memory import decode_memory
    from rheo_sglang.pools.sizing import make_plan
    from rheo_sglang.validate import captures_decode, check_loaded_model, uses_rheo

    device_bytes = original(configurator, *args, **kwargs)
    if not uses_rheo(configurator.server_args):
        return device_bytes
    check_loaded_model(configurator)
    config = RheoConfig.from_environment()
    captures = captures_decode(config, configurator.device)
    return make_plan(configurator, device_bytes, decode_memory(configurator, config, captures))


def limit_requests(original: Any, configurator: Any, *args: Any, **kwargs: Any) -> int:
    """Keep no more requests running than have a frame for their tail pages."""
    from rheo_sglang.pools.sizing import planned, running_limit

    requests = original(configurator, *args, **kwargs)
    return requests if planned() is None else running_limit(configurator, requests)


def build_pool(original: Any, configurator: Any, *args: Any, **kwargs: Any) -> Any:
    """Build the rheo KV pool in the place of SGLang's."""
    from rheo_sglang.pools.sizing import build_kv_pool, planned

    if planned() is None:
        return original(configurator, *args, **kwargs)
    return build_kv_pool(configurator, kwargs["max_total_num_tokens"])


def build_allocator(original: Any, configurator: Any, *args: Any, **kwargs: Any) -> Any:
    """Build the rheo allocator over the rheo KV pool."""
    from rheo_sglang.pools.allocator import RheoAllocator
    from rheo_sglang.pools.sizing import planned

    if planned() is None:
        return original(configurator, *args, **kwargs)

    return RheoAllocator(kwargs["token_to_kv_pool"], need_sort=False)


HOOKS = (
    Hook(f"{CONFIGURATOR}.configure", configure_pools, "AROUND"),
    Hook(f"{CONFIGURATOR}._profile_available_bytes", size_logical_space, "AROUND"),
    Hook(f"{CONFIGURATOR}.resolve_max_num_reqs", limit_requests, "AROUND"),
    Hook(f"{CONFIGURATOR}._build_mha_kv_pool", build_pool, "AROUND"),
    Hook(f"{CONFIGURATOR}._build_token_to_kv_pool_allocator", build_allocator, "AROUND"),
)
