"""Where the supported SGLang versions differ for these tests, and nothing else."""

from __future__ import annotations

import dataclasses
import functools
from array import array
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.registry import TreeCacheBuildContext
from sglang.srt.server_args import ServerArgs

from rheo_sglang.plugin import create_tree_cache
from rheo_sglang.pools.allocator import RheoAllocator

RESOLVES_LATE = hasattr(ServerArgs, "resolve_once")
"""Whether arguments are resolved by a method of their own (0.5.23) or by construction (0.5.17)."""


def unresolved_arguments(**values: Any) -> ServerArgs:
    """Real ``ServerArgs`` with their defaults, as the plugin sees them: before SGLang resolves them."""
    if RESOLVES_LATE:
        return ServerArgs(model_path="dummy", device="cpu", **values)
    arguments = object.__new__(ServerArgs)
    for field in dataclasses.fields(ServerArgs):
        if field.default_factory is not dataclasses.MISSING:
            setattr(arguments, field.name, field.default_factory())
        elif field.default is not dataclasses.MISSING:
            setattr(arguments, field.name, field.default)
    for name, value in {"model_path": "dummy", "device": "cpu", **values}.items():
        setattr(arguments, name, value)
    return arguments


def setting_names() -> list[str]:
    """Every field of ``ServerArgs``: a msgspec struct (0.5.23) or a dataclass (0.5.17)."""
    if dataclasses.is_dataclass(ServerArgs):
        return [field.name for field in dataclasses.fields(ServerArgs)]
    return list(ServerArgs.__struct_fields__)


@functools.cache
def publish_arguments() -> None:
    """Make this process one that SGLang's cache factory finds its settings in (0.5.23)."""
    if RESOLVES_LATE:
        from sglang.srt.runtime_context import publish

        publish(unresolved_arguments(), role="scheduler")


def build_tree(
    allocator: RheoAllocator, req_to_token_pool: ReqToTokenPool, kv_events: bool = False, group: Any = None
) -> Any:
    """SGLang's unified radix cache with rheo's component, from the plugin's own factory."""
    publish_arguments()
    params = CacheInitParams(
        disable=False,
        req_to_token_pool=req_to_token_pool,
        token_to_kv_pool_allocator=allocator,
        page_size=allocator.page_size,
        enable_kv_cache_events=kv_events,
        tp_cache_group=group,
    )
    single_process: dict[str, Any] = {field.name: None for field in dataclasses.fields(TreeCacheBuildContext)}
    single_process |= {
        "params": params,
        "tp_size": 1,
        "tp_rank": 0,
        "is_hybrid_swa": False,
        "is_hybrid_ssm": False,
        "is_dsa": False,
        "enable_hierarchical_cache": False,
        "disable_radix_cache": False,
    }
    return create_tree_cache(TreeCacheBuildContext(**single_process))


def radix_key(tokens: list[int], extra_key: str | None = None) -> RadixKey:
    """Key of a token sequence, and what keeps requests of the same tokens apart."""
    return RadixKey(array("q", tokens), extra_key)


def request(rid: str, tokens: list[int], extra_key: str | None = None) -> Any:
    """What the storage tier reads of a request that waits; 0.5.23 has a salt beside the extra key."""
    salt = {"cache_salt": None} if "cache_salt" in RadixKey.__slots__ else {}
    return SimpleNamespace(
        rid=rid,
        origin_input_ids=tokens,
        output_ids=[],
        extra_key=extra_key,
        session=None,
        to_finish=None,
        finished=lambda: False,
        _compute_max_prefix_len=lambda length: length - 1,
        **salt,
    )


def match(tree: Any, tokens: list[int], extra_key: str | None = None) -> tuple[torch.Tensor, Any]:
    """Slots of the longest cached prefix, and the node where it ends."""
    result = tree.match_prefix(MatchPrefixParams(key=radix_key(tokens, extra_key)))
    if hasattr(result, "device_indices"):
        return result.device_indices, result.last_device_node
    return tree.path_device_indices(result.last_device_node), result.last_device_node


def lock(tree: Any, node: Any) -> Any:
    """Protect a node and its ancestors; hand the receipt to `unlock`."""
    return tree.inc_lock_ref(node)


def unlock(tree: Any, node: Any, receipt: Any) -> None:
    """Undo a `lock`."""
    tree.dec_lock_ref(node, receipt.to_dec_params())


def block_hash(tokens: list[int], page_size: int) -> int:
    """What KV events announce for the last page of a prefix of whole pages, by SGLang's own chain of hashes."""
    from sglang.srt.mem_cache.utils import get_hash_str, hash_str_to_int64

    digest = None
    for start in range(0, len(tokens), page_size):
        digest = get_hash_str(array("q", tokens[start : start + page_size]), digest)
    assert digest is not None
    return hash_str_to_int64(digest)
