"""Entry point: the only file that registers or hooks anything in SGLang."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
from typing import Any

from rheo_sglang.config import DEFAULT_PAGE_SIZE, ENVIRONMENT, RheoConfig
from rheo_sglang.errors import FLAG, ConfigError, reject
from rheo_sglang.refusal import (
    end_scheduler,
    expect_schedulers,
    note_command_line,
    refuse,
    report_dead_scheduler,
)

MODEL_CONFIG = "sglang.srt.configs.model_config.ModelConfig"
CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"
ENGINE = "sglang.srt.entrypoints.engine"
FUSED_WRITE = "sglang.srt.models.utils.enable_fused_set_kv_buffer"
FORWARD_BATCH = "sglang.srt.model_executor.forward_batch_info.ForwardBatch"
GRAPH_RUNNER = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner"
REQUEST = "sglang.srt.managers.schedule_batch.Req"
SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
PREFILL_ADDER = "sglang.srt.managers.schedule_policy.PrefillAdder"
SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
TOKENIZER_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
TREE_CACHE = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
WEIGHT_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
WEIGHT_SOURCES = ("disk", "distributed", "tensor", "ipc")

logger = logging.getLogger(__name__)


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
    HookRegistry.register(f"{SERVER_ARGS}.add_cli_args", add_flag, HookType.AFTER)
    HookRegistry.register(f"{SERVER_ARGS}.from_cli_args", parse_flag, HookType.AROUND)
    HookRegistry.register(
        f"{SERVER_ARGS}.{compat.unresolved_arguments_hook()}", adapt_arguments, HookType.BEFORE
    )
    HookRegistry.register(f"{MODEL_CONFIG}.from_server_args", check_model, HookType.AFTER)
    HookRegistry.register(f"{CONFIGURATOR}.configure", configure_pools, HookType.AROUND)
    HookRegistry.register(f"{CONFIGURATOR}._profile_available_bytes", size_logical_space, HookType.AROUND)
    HookRegistry.register(f"{CONFIGURATOR}.resolve_max_num_reqs", limit_requests, HookType.AROUND)
    HookRegistry.register(f"{CONFIGURATOR}._build_mha_kv_pool", build_pool, HookType.AROUND)
    HookRegistry.register(
        f"{CONFIGURATOR}._build_token_to_kv_pool_allocator", build_allocator, HookType.AROUND
    )
    HookRegistry.register(f"{SCHEDULER}.get_internal_state", add_state, HookType.AFTER)
    HookRegistry.register(f"{SCHEDULER}.process_batch_result", after_batch, HookType.AFTER)
    HookRegistry.register(f"{SCHEDULER}.on_idle", idle, HookType.AROUND)
    HookRegistry.register(f"{SCHEDULER}.__init__", end_scheduler, HookType.AROUND)
    HookRegistry.register(f"{SCHEDULER}.init_running_status", equip_scheduler, HookType.AFTER)
    HookRegistry.register(f"{SCHEDULER}.update_running_batch", pause_requests, HookType.BEFORE)
    HookRegistry.register(f"{PREFILL_ADDER}.add_one_req", admit_request, HookType.AROUND)
    HookRegistry.register(f"{REQUEST}._compute_max_prefix_len", limit_prefix, HookType.AROUND)
    HookRegistry.register(f"{SCHEDULER}._prefetch_kvcache", prefetch_prefix, HookType.AROUND)
    HookRegistry.register(f"{TREE_CACHE}.check_prefetch_progress", check_prefetch, HookType.AROUND)
    HookRegistry.register(f"{TREE_CACHE}.release_aborted_request", abandon_prefetch, HookType.AROUND)
    for source in WEIGHT_SOURCES:
        HookRegistry.register(f"{WEIGHT_UPDATER}.update_weights_from_{source}", note_weights, HookType.AFTER)
    if multiprocessing.parent_process() is None:
        HookRegistry.register(f"{ENGINE}._scheduler_died_error", report_dead_scheduler, HookType.AFTER)
        HookRegistry.register(f"{TOKENIZER_MANAGER}.generate_request", check_request, HookType.BEFORE)
        HookRegistry.register(f"{TOKENIZER_MANAGER}.create_abort_task", check_stream, HookType.BEFORE)
        HookRegistry.register(
            f"{TOKENIZER_MANAGER}.release_memory_occupation", refuse_release, HookType.BEFORE
        )
    HookRegistry.register(f"{SCHEDULER}._add_request_to_queue", read_request, HookType.BEFORE)
    HookRegistry.register(f"{FORWARD_BATCH}.init_new", assign_budgets, HookType.AFTER)
    HookRegistry.register(f"{GRAPH_RUNNER}.capture_one_shape", capture_variants, HookType.AROUND)
    HookRegistry.register(f"{GRAPH_RUNNER}._make_graph_key", label_graph, HookType.AFTER)
    HookRegistry.register(f"{GRAPH_RUNNER}.load_batch", note_requests, HookType.BEFORE)
    HookRegistry.register(FUSED_WRITE, writes_kv_with_rope, HookType.AROUND)
    if compat.without_triton():
        compat.interpret_triton()
        HookRegistry.register("sglang.srt.utils.common.support_triton", no_triton, HookType.REPLACE)


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


def add_flag(result: Any, parser: Any, *args: Any, **kwargs: Any) -> Any:
    """Add ``--rheo-config`` to SGLang's command line."""
    parser.add_argument(
        FLAG,
        type=str,
        default=None,
        help="Settings of --attention-backend rheo: a JSON object, or a file that holds one. "
        f"The environment variable {ENVIRONMENT} takes the same and is not read where this is given.",
    )
    return result


def parse_flag(original: Any, cls: Any, args: Any) -> Any:
    """Hand ``--rheo-config`` to every process of this server, and adapt the other arguments."""
    note_command_line()
    text = getattr(args, "rheo_config", None)
    try:
        if text is not None:
            if args.attention_backend != "rheo":
                raise ConfigError(f"{FLAG}: needs --attention-backend rheo, not {args.attention_backend!r}")
            chosen = RheoConfig.parse(text).to_json()
            if os.environ.get(ENVIRONMENT, chosen) != chosen:
                logger.warning(
                    "rheo: %s is given, so the environment variable %s is not read", FLAG, ENVIRONMENT
                )
            os.environ[ENVIRONMENT] = chosen
    except ConfigError as error:
        refuse(error)
    return original(cls, args)


def adapt_arguments(server_args: Any) -> None:
    """Check the unresolved server arguments and select what rheo needs."""
    from rheo_sglang.validate import adapt_server_args, check_device, check_kernels, uses_rheo

    if not uses_rheo(server_args) or getattr(server_args, "_resolution_finished", False):
        return
    try:
        RheoConfig.from_environment()
        adapt_server_args(server_args)
        check_device(server_args.device)
        check_kernels()
        expect_schedulers()
    except ConfigError as error:
        refuse(error)


def check_model(result: Any, server_args: Any, *args: Any, **kwargs: Any) -> Any:
    """Check the model's configuration, before its weights are loaded."""
    from rheo_sglang.validate import check_context, check_model_config, default_device, uses_rheo

    if uses_rheo(server_args):
        try:
            check_model_config(result)
            page_size = server_args.page_size or DEFAULT_PAGE_SIZE
            check_context(result.context_len, page_size, server_args.device or default_device())
        except ConfigError as error:
            refuse(error)
    return result


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


def add_state(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Put the recorder's report and the counters into ``/server_info``."""
    from rheo_sglang.state import describe_scheduler

    state = describe_scheduler(scheduler)
    if state is not None:
        result.internal_state["rheo"] = state
    return result


def equip_scheduler(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """Give the scheduler's allocator what decides who may join its batches, and its storage tier, if rheo serves."""
    from rheo_sglang.admission.scheduling import make_admission
    from rheo_sglang.pools.allocator import RheoAllocator
    from rheo_sglang.storage import make_storage

    allocator = scheduler.token_to_kv_pool_allocator
    if isinstance(allocator, RheoAllocator):
        allocator.admission = make_admission(scheduler)
        allocator.storage = make_storage(scheduler)


def admit_request(original: Any, adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """Leave a request in the queue, as where there is no room for its tokens, if its working set does not fit."""
    from sglang.srt.managers.schedule_policy import AddReqResult

    admission = getattr(adder.token_to_kv_pool_allocator, "admission", None)
    if admission is not None and not admission.admits(adder, req):
        return AddReqResult.NO_TOKEN
    return original(adder, req, *args, **kwargs)


def limit_prefix(original: Any, req: Any, tokens: int, *args: Any, **kwargs: Any) -> int:
    """Have the prompt's last tokens computed, cached or not, where estimates are corrected by what they attend."""
    from rheo_sglang.pools.sizing import planned
    from rheo_sglang.prefill.seed import SEED_QUERIES

    limit: int = original(req, tokens, *args, **kwargs)
    plan = planned()
    return limit if plan is None or not plan.corrects else max(min(limit, tokens - SEED_QUERIES), 0)


def pause_requests(scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
    """Before a decode step, take requests out of the running batch that are to pause."""
    admission = getattr(scheduler.token_to_kv_pool_allocator, "admission", None)
    if admission is not None:
        admission.before_decode(batch)


def prefetch_prefix(original: Any, scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """Begin to look for the prefix of a request that comes into the queue, in rheo's storage tier if there is one."""
    storage = served_storage(scheduler)
    return original(scheduler, req, *args, **kwargs) if storage is None else storage.prefetch(req)


def idle(original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Leave the processor to the storage tier's reader where the scheduler waits for nothing else.

    Between batches `after_batch`'s work goes on, and what the last ones changed is read too.
    """
    from rheo_sglang.observability.observer import observer

    storage = served_storage(scheduler)
    if storage is not None:
        storage.rest({request.rid for request in scheduler.waiting_queue})
    result = original(scheduler, *args, **kwargs)
    export_importance(scheduler)
    watching = observer(scheduler)
    if watching is not None:
        watching.poll_idle(scheduler.is_fully_idle)
    return result


def check_prefetch(original: Any, tree_cache: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Whether a waiting request waits no longer for its prefix."""
    from rheo_sglang import compat

    storage = served_storage(tree_cache)
    if storage is None:
        return original(tree_cache, request, *args, **kwargs)
    return storage.ready(compat.prefetch_rid(request))


def abandon_prefetch(original: Any, tree_cache: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Forget the prefix of a request that left the queue."""
    from rheo_sglang import compat

    storage = served_storage(tree_cache)
    if storage is not None:
        storage.abandon(compat.prefetch_rid(request))
    return original(tree_cache, request, *args, **kwargs)


def note_weights(result: Any, updater: Any, *args: Any, **kwargs: Any) -> Any:
    """Have pages that are made with other weights stored under other keys."""
    allocator = updater.tp_worker.model_runner.token_to_kv_pool_allocator
    storage = getattr(allocator, "storage", None)
    if storage is not None:
        storage.note_weights()
    return result


def served_storage(owner: Any) -> Any:
    """The storage tier behind the allocator of a scheduler or radix cache, or None if it has none."""
    return getattr(owner.token_to_kv_pool_allocator, "storage", None)


def after_batch(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Write importance to its file if it is time to; log and export what readings say, once they have arrived."""
    from rheo_sglang.observability.observer import observer

    export_importance(scheduler)
    watching = observer(scheduler)
    if watching is not None:
        watching.poll()
    return result


def export_importance(scheduler: Any) -> None:
    """Write the importance of all cached blocks to a file now and then, where a file is configured."""
    from rheo_sglang.state import exporter

    export = exporter(scheduler)
    if export is not None:
        export.poll()


def served_backend(runner: Any) -> Any:
    """The rheo backend of a model runner or CUDA graph runner, or None if it runs another."""
    from rheo_sglang.backend import RheoAttentionBackend

    backend = runner.attn_backend
    return backend if isinstance(backend, RheoAttentionBackend) else None


def capture_variants(original: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
    """Capture one batch size in every shape of the decode step, where SGLang would capture it once."""
    backend = served_backend(runner)
    if backend is None:
        original(runner, *args, **kwargs)
        return
    for variant in backend.graph_variants():
        backend.capturing = variant
        original(runner, *args, **kwargs)
    backend.capturing = None


def label_graph(result: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Name a graph by the shape that it was captured in."""
    backend = served_backend(runner)
    if backend is None:
        return result
    labels = (result.variant_label, backend.graph_label())
    return dataclasses.replace(result, variant_label=" ".join(filter(None, labels)))


def note_requests(runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> None:
    """Hand the request ids over: the view of the batch that SGLang shows a backend before a replay lacks them."""
    backend = served_backend(runner)
    if backend is not None:
        backend.rids = forward_batch.rids


def writes_kv_with_rope(original: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a model may write K and V in the kernel that applies rotary embeddings: not into pages, which are no
    ``[slots, heads, dim]``; then it hands them to the backend."""
    from sglang.srt.model_executor.forward_context import get_attn_backend

    from rheo_sglang.backend import RheoAttentionBackend

    return not isinstance(get_attn_backend(), RheoAttentionBackend) and original(*args, **kwargs)


def check_request(manager: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse a request with a bad setting, all its prompts at once: SGLang answers a ValueError with HTTP 400."""
    from rheo_sglang.request_settings import check_parameters
    from rheo_sglang.validate import uses_rheo

    if uses_rheo(manager.server_args):
        check_parameters(request.sampling_params, manager.preferred_sampling_params)


def check_stream(manager: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse a request as `check_request` does, before ``/generate`` has answered a stream with HTTP 200.

    SGLang makes the task that ends a stream when it answers, and generates only then.
    """
    from fastapi import HTTPException

    try:
        check_request(manager, request)
    except ConfigError as error:
        raise HTTPException(400, str(error)) from None


def refuse_release(manager: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse to lend the GPU's memory to others, with HTTP 400: under load SGLang's scheduler would end instead."""
    from rheo_sglang.validate import uses_rheo

    if uses_rheo(manager.server_args):
        raise ValueError(
            "release_memory_occupation is not supported with --attention-backend rheo, which keeps its frames and "
            "its pinned host memory as long as it runs; stop the server instead"
        )


def read_request(scheduler: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    """Read a new request's settings; end it with HTTP 400 if they are bad and nobody has checked them.

    Tokenizers that SGLang runs in processes of their own load no plugins. A text without tokens ends here, too: SGLang
    refuses no prompt that a tokenizer makes nothing of, and its models end the server over a batch of no tokens.
    """
    from rheo_sglang.request_settings import PARAMETERS, brings_settings, read_settings
    from rheo_sglang.validate import uses_rheo

    if not uses_rheo(scheduler.server_args):
        return
    if not len(request.origin_input_ids):
        request.set_finish_with_abort("the prompt has 0 tokens; allowed: 1 or more")
        return
    parameters: Any = getattr(request.sampling_params, PARAMETERS, None)
    if not brings_settings(parameters):
        return
    try:
        request.rheo_budget = read_settings(parameters, RheoConfig.from_environment())
    except ConfigError as error:
        request.set_finish_with_abort(str(error))


def assign_budgets(result: Any, cls: Any, batch: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Tell the backend the settings of requests that are prefilled: they have their rows of the token table by then."""
    if result.forward_mode.is_extend():
        backend = served_backend(runner)
        if backend is not None:
            backend.assign_budgets(batch.reqs)
    return result


def no_triton(backend: str) -> bool:
    """SGLang's ``support_triton`` on a machine without a GPU."""
    return False
