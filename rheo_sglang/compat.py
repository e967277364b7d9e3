"""Every difference between the supported SGLang versions (0.5.17 to 0.5.23), and nothing else."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def create_tree_cache(ctx: Any, component: type) -> Any:
    """Build SGLang's unified radix cache with ``component`` in the place of its full-attention component.

    0.5.23 offers a factory that also serves ``--disable-radix-cache``; before it, the cache is put together here
    and a disabled cache is SGLang's chunk cache.
    """
    from sglang.srt.mem_cache import registry
    from sglang.srt.mem_cache.unified_cache.components import ComponentType

    ctx.params.component_registry_override = {ComponentType.FULL: component}
    if hasattr(registry, "create_unified_radix_cache"):
        return registry.create_unified_radix_cache(ctx)
    if ctx.disable_radix_cache:
        ctx.params.component_registry_override = None
        return registry.default_radix_cache_factory(ctx)
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    ctx.params.tree_components = (ComponentType.FULL,)
    return UnifiedRadixCache(ctx.params)


def unresolved_arguments_hook() -> str:
    """Method of ``ServerArgs`` that runs before the arguments are resolved and may still change them.

    0.5.23 resolves in a method of its own; before it, construction did.
    """
    from sglang.srt.server_args import ServerArgs

    return "resolve_once" if hasattr(ServerArgs, "resolve_once") else "__post_init__"


def without_triton() -> bool:
    """Whether this is SGLang's CPU engine in a version that would still run Triton kernels there.

    Up to 0.5.20 ``support_triton`` decides by the attention backend's name and takes an unknown one for a GPU's,
    and the paged allocator always launches Triton kernels; 0.5.23 asks the platform in both places.
    """
    from sglang.srt.utils import common

    by_name = "capabilities" not in inspect.getsource(common.support_triton)
    return by_name and os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"


def interpret_triton() -> None:
    """Have Triton's interpreter run the allocator's kernels; takes effect in processes started from here on."""
    os.environ.setdefault("TRITON_INTERPRET", "1")


@contextmanager
def without_cpu_kernels() -> Iterator[None]:
    """Have SGLang size pools without the demands of its own CPU attention.

    0.5.23 asks for AMX and ``intel_amx`` where KV on a CPU is of 8 bits, for kernels of its own; before it, nothing was
    asked. Its configurator asks the platform for nothing else.
    """
    from sglang.srt.mem_cache import kv_cache_configurator

    platform = getattr(kv_cache_configurator, "current_platform", None)
    if platform is None:
        yield
        return

    class WithoutCpuKernels:
        def __getattr__(self, name: str) -> Any:
            return getattr(platform, name)

        def is_cpu(self) -> bool:
            return False

    kv_cache_configurator.current_platform = WithoutCpuKernels()
    try:
        yield
    finally:
        kv_cache_configurator.current_platform = platform


def request_row(request: Any) -> int:
    """A running request's row of the token table.

    0.5.23 keeps it with the request's KV; before it, the request did.
    """
    holder = request if hasattr(request, "req_pool_idx") else request.kv
    return int(holder.req_pool_idx)


def tokens_after_pass(request: Any) -> int:
    """Tokens of a request that are in its KV once the pass being prepared or run is done.

    0.5.23 counts them with the request's KV; before it, the request did.
    """
    counts = request if hasattr(request, "kv_committed_len") else request.kv
    return int(counts.kv_committed_len)


def release_into_tree(request: Any, tree_cache: Any) -> None:
    """Give the KV of an unfinished request back, of which the tree keeps the whole pages.

    0.5.23 calls that a checkpoint; before it, it was an insert.
    """
    from sglang.srt.mem_cache.common import release_kv_cache

    name = "checkpoint" if "checkpoint" in inspect.signature(release_kv_cache).parameters else "is_insert"
    release_kv_cache(request, tree_cache, **{name: True})


def full_slots(node: Any) -> Any:
    """KV slots of a radix node, ``[X]``, int64, or None where it has none."""
    from sglang.srt.mem_cache.unified_cache.components import ComponentType

    return node.component_data[ComponentType.FULL].value


def block_hash_texts(core: Any, node: Any, page_size: int) -> list[str]:
    """A radix node's SHA-256 content hashes, one a page, as the tree's KV events have them.

    They are computed where they are missing and kept with the node. Its parent must have its own already. 0.5.23 keeps
    those of requests with a salt or an extra key apart.
    """
    recorder = getattr(core, "kv_events", None)
    if recorder is not None:
        return recorder._node_event_hash_values(node)
    if node.hash_value is None:
        from sglang.srt.mem_cache.utils import compute_node_hash_values

        node.hash_value = compute_node_hash_values(node, page_size)
    return node.hash_value


def load_block_hashing() -> None:
    """Load what SGLang computes content hashes with, a C++ extension that is compiled once on each machine.

    Raises RuntimeError where it cannot be compiled or loaded.
    """
    from sglang.srt.mem_cache.utils import get_hash_str

    get_hash_str([0])


def announced_hashes(core: Any, node: Any, texts: list[str]) -> list[int]:
    """The numbers, int64, that KV events announce for a node's content hashes.

    0.5.23 hashes them once more with the name of an adapter, and in its format for Dynamo with the salt.
    """
    from sglang.srt.mem_cache.utils import hash_str_to_int64

    hashes = [hash_str_to_int64(text) for text in texts]
    recorder = getattr(core, "kv_events", None)
    if recorder is None:
        return hashes
    from sglang.srt.disaggregation.kv_events import namespaced_block_hash

    seed = recorder._namespace_seed(node)
    return [namespaced_block_hash(block, namespace_seed=seed) for block in hashes]


def exporting_replica(scheduler: Any) -> tuple[bool, int | None]:
    """Whether a scheduler is the first of its replica, and the replica's number where there are several.

    0.5.23 keeps ranks with the process; before it, the scheduler did.
    """
    ranks = getattr(scheduler, "ps", None)
    if ranks is None:
        from sglang.srt.runtime_context import get_parallel

        ranks = get_parallel()
    replica = ranks.attn_dp_rank if ranks.attn_dp_size > 1 else ranks.dp_rank
    return ranks.pp_rank == 0 and ranks.attn_tp_rank == 0, replica


def storage_settings(text: str | None) -> tuple[dict[str, Any], int, float, float, bool]:
    """SGLang's reading of ``--hicache-storage-backend-extra-config``.

    What is the backend's, the fewest tokens to ask for, the seconds of a prefetch and of each 1,024 tokens of it, and
    whether backends want the keys before a batch. Raises what SGLang does where it cannot be read.
    """
    from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController

    return HybridCacheController.parse_storage_backend_extra_config(text)


def storage_hashes(node: Any, page_size: int) -> list[str]:
    """A radix node's hashes as SGLang's storage keys have them, one a page; they are kept with the nodes.

    0.5.23 begins the chain with what keeps requests apart; before it, keys did not have that.
    """
    from sglang.srt.mem_cache.utils import compute_node_hash_values

    bare = []
    ancestor = node
    while ancestor is not None and len(ancestor.key) and ancestor.hash_value is None:
        bare.append(ancestor)
        ancestor = ancestor.parent
    for one in reversed(bare):
        one.hash_value = compute_node_hash_values(one, page_size)
    return node.hash_value


def page_hashes(key: Any, before: str | None, page_size: int) -> list[str]:
    """Hashes of a radix key's pages, as `storage_hashes` has them, behind a page with the hash ``before``."""
    from sglang.srt.mem_cache import utils

    chain = getattr(utils, "get_storage_hash_str", utils.get_hash_str)
    return chain(key, before, page_size=page_size)


def request_key(request: Any, tokens: Any) -> Any:
    """Radix key of some tokens of a request, ``array('q')``; 0.5.23 keeps a salt beside the extra key."""
    from sglang.srt.mem_cache.radix_cache import RadixKey

    if hasattr(request, "cache_salt"):
        return RadixKey(tokens, request.extra_key, cache_salt=request.cache_salt)
    return RadixKey(tokens, request.extra_key)


def match_prefix(tree_cache: Any, key: Any) -> tuple[Any, Any]:
    """Slots of the longest cached prefix of a radix key, ``[X]``, and the id of the node where it ends.

    0.5.23 finds the slots by the node; before it, the match had them.
    """
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

    result = tree_cache.match_prefix(MatchPrefixParams(key=key))
    if hasattr(result, "device_indices"):
        return result.device_indices, result.last_device_node
    return tree_cache.path_device_indices(result.last_device_node), result.last_device_node


def insert_prefix(tree_cache: Any, key: Any, slots: Any, shared: int) -> None:
    """Put a prefix into the radix cache; its first ``shared`` tokens are the cache's own slots."""
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams

    tree_cache.insert(InsertParams(key=key, value=slots, prev_prefix_len=shared))


def allocate(tree_cache: Any, allocator: Any, tokens: int) -> Any:
    """Slots for whole pages, ``[tokens]``, for which cached prefixes are evicted; None where there is no room."""
    from sglang.srt.mem_cache.common import evict_from_tree_cache

    if allocator.available_size() + tree_cache.evictable_size() < tokens:
        return None
    evict_from_tree_cache(tree_cache, tokens)
    return allocator.alloc(tokens)


def prefetch_rid(request: Any) -> str:
    """Id of the request that SGLang's radix cache is asked about; 0.5.23 asks by a handle, before it by the id."""
    return getattr(request, "rid", request)
