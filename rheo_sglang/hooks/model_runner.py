"""model_runner: CUDA graphs in every shape of a decode step, and what the backend needs of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

from rheo_sglang.hooks.hook import Hook

FUSED_WRITE = "sglang.srt.models.utils.enable_fused_set_kv_buffer"
FORWARD_BATCH = "sglang.srt.model_executor.forward_batch_info.ForwardBatch"
GRAPH_RUNNER = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner"


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


def assign_budgets(result: Any, cls: Any, batch: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Tell the backend the settings of requests that are prefilled: they have their rows of the token table by then."""
    if result.forward_mode.is_extend():
        backend = served_backend(runner)
        if backend is not None:
            backend.assign_budgets(batch.reqs)
    return result


HOOKS = (
    Hook(f"{FORWARD_BATCH}.init_new", assign_budgets, "AFTER"),
    Hook(f"{GRAPH_RUNNER}.capture_one_shape", capture_variants, "AROUND"),
    Hook(f"{GRAPH_RUNNER}._make_graph_key", label_graph, "AFTER"),
    Hook(f"{GRAPH_RUNNER}.load_batch", note_requests, "BEFORE"),
    Hook(FUSED_WRITE, writes_kv_with_rope, "AROUND"),
)
