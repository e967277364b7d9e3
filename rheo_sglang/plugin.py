"""Entry point: the only file that registers anything in SGLang; what it hooks is in `rheo_sglang.hooks`."""

from __future__ import annotations

import multiprocessing
from typing import Any

from rheo_sglang.config import RheoConfig
from rheo_sglang.errors import reject
from rheo_sglang.hooks.hook import Hook


def register() -> None:
    """Make ``--attention-backend rheo`` work: called by SGLang in every process before arguments are parsed."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.mem_cache.registry import register_radix_cache_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import add_attention_backend_choices

    from rheo_sglang import compat

    add_attention_backend_choices(["rheo"])
    register_attention_backend("rheo")(create_backend)
    register_radix_cache_backend("rheo", create_tree_cache)
    for target, function, kind in hooks():
        HookRegistry.register(target, function, HookType[kind])
    if compat.without_triton():
        compat.interpret_triton()


def hooks() -> list[Hook]:
    """What is hooked in this process."""
    from rheo_sglang import compat
    from rheo_sglang.hooks import arguments, model_runner, pools, requests, scheduler, storage

    found = [
        *arguments.HOOKS,
        *pools.HOOKS,
        *scheduler.HOOKS,
        *storage.HOOKS,
        *requests.HOOKS,
        *model_runner.HOOKS,
    ]
    if multiprocessing.parent_process() is None:
        found += requests.IN_MAIN_PROCESS
    if compat.without_triton():
        found.append(Hook("sglang.srt.utils.common.support_triton", no_triton, "REPLACE"))
    return found


def create_backend(runner: Any) -> Any:
    """Attention backend factory."""
    from rheo_sglang.backend import RheoAttentionBackend

    return RheoAttentionBackend(runner)


def create_tree_cache(ctx: Any) -> Any:
    """Radix cache factory."""
    from rheo_sglang import compat
    from rheo_sglang.tree.component import RheoFullComponent

    path = RheoConfig.from_environment().importance_file
    if path is not None:
        try:
            compat.load_block_hashing()
        except RuntimeError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            reject(
                "importance_file", path, f"where SGLang's content hashes can be computed ({reason})", "rheo"
            )
    return compat.create_tree_cache(ctx, RheoFullComponent)


def no_triton(backend: str) -> bool:
    """SGLang's ``support_triton`` on a machine without a GPU."""
    return False
