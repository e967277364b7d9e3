"""RheoAttentionBackend: SGLang's attention interface, translated to a decode engine's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.logits_processor import LogitsProcessor

from rheo_sglang import compat
from rheo_sglang.decode.engine import EngineInputs
from rheo_sglang.decode.heads import HeadShape, loaded_heads
from rheo_sglang.decode.make_engine import make_engine
from rheo_sglang.errors import ConfigError, reject
from rheo_sglang.kv_dtypes import layer_scales
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.prefill import PrefillBatch
from rheo_sglang.recorder import Recorder
from rheo_sglang.selection import EstimatingSummary
from rheo_sglang.traces import TracedShape, Tracer, open_trace

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from rheo_sglang.decode.variant import Variant


class RheoAttentionBackend(AttentionBackend):
    """Dense prefill, sparse decode.

    Parameters
    ----------
    runner
        SGLang's model runner; its KV pool is a `RheoKVPool`.

    Attributes
    ----------
    engine
        Runs decode steps and prefill passes.
    token_to_kv_pool, req_to_token_pool
        What models and SGLang's runners ask an attention backend for.
    rids
        Ids of the requests of the next decode step.
    capturing
        Shape that SGLang captures a graph in; None otherwise.

    Raises
    ------
    ConfigError
        If SGLang built another KV pool, or one for other heads than the model's layers have: the model is of a kind
        that rheo does not serve.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__()
        pool = runner.token_to_kv_pool
        if not isinstance(pool, RheoKVPool):
            raise ConfigError(
                f"--attention-backend: 'rheo' does not support the KV pool {type(pool).__name__} of this model; "
                "allowed: dense GQA or MHA models (Llama, Qwen3, ...)"
            )
        self.pool = self.token_to_kv_pool = pool
        self.req_to_token_pool = runner.req_to_token_pool
        self.chunk_tokens = runner.server_args.chunked_prefill_size or 0
        self.engine = make_engine(engine_inputs(runner, pool))
        self.engine.ended_by_model = runner.server_args.pp_size == 1 and call_after_logits(
            runner.model, self._after_logits
        )
        if pool.config.conservative_margin is not None and not self.engine.ended_by_model:
            margin = pool.config.conservative_margin
            reject("conservative_margin", margin, "not given with this model, which has no logits", "rheo")
        self.prefill_batch: PrefillBatch | None = None
        self.rids: list[str] | None = None
        self.capturing: Variant | None = None

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Settle what the scheduler freed, and describe the batch in pages; also before a step without a graph."""
        mode = forward_batch.forward_mode
        if mode.is_decode():
            self.rids = forward_batch.rids
            self.init_forward_metadata_out_graph(forward_batch)
            return
        self.engine.settle()
        if mode.is_idle():
            self.engine.latest = None
            return
        lengths = forward_batch.extend_seq_lens_cpu
        self.prefill_batch = self.engine.begin_prefill(
            forward_batch.req_pool_indices,
            forward_batch.extend_prefix_lens_cpu,
            lengths,
            forward_batch.out_cache_loc,
            goes_on=0 < self.chunk_tokens <= sum(lengths),
            rids=forward_batch.rids,
        )

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Allocate what the captured kernels share."""
        self.engine.reserve(max_bs)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Length of padded rows, which are told apart by their number and not by this."""
        return 1

    def init_forward_metadata_out_graph(self, forward_batch: ForwardBatch, in_capture: bool = False) -> None:
        """Describe a decode step's batch, padded rows included, before its graph is captured or replayed."""
        self.engine.settle()
        padding = getattr(forward_batch, "num_padding", 0)
        self.engine.begin_step(
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            forward_batch.seq_lens_cpu,
            0 if in_capture else forward_batch.batch_size - padding,
            self.rids,
            self.capturing if in_capture else None,
        )

    def assign_budgets(self, requests: Sequence[Any]) -> None:
        """Give the requests of a prefill pass the budgets that they ask for, and the server's to those that do not."""
        rows = [compat.request_row(request) for request in requests]
        self.engine.budget.assign(rows, [getattr(request, "rheo_budget", None) for request in requests])

    def _after_logits(self, logits: torch.Tensor | None) -> None:
        """End a step, and look at the logits of a pass, ``[B, V]``; part of its graph."""
        self.engine.end_step()
        if logits is not None:
            self.engine.note_margins(logits)

    def graph_variants(self) -> Sequence[Variant]:
        """Shapes that the decode step is captured in."""
        return self.engine.variants

    def graph_label(self) -> str:
        """Name of the shape that the step runs in; SGLang's runner finds its graph by it."""
        return str(self.engine.variant)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Prefill: ``[T, Hq * D]`` queries to ``[T, Hq * D]`` outputs, in the queries' dtype."""
        assert self.prefill_batch is not None
        slots, batch = forward_batch.out_cache_loc, self.prefill_batch
        out = self.engine.prefill(self._index(layer), *self._heads(q, k, v), slots, batch, layer.scaling)
        return out.view(q.shape[0], -1)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Decode: ``[B, Hq * D]`` queries to ``[B, Hq * D]`` outputs, in the queries' dtype."""
        queries, keys, values = self._heads(q, k, v)
        out = torch.empty(queries.shape, dtype=q.dtype, device=q.device)
        self.engine.forward(self._index(layer), queries, keys, values, layer.scaling, out)
        return out.view(q.shape[0], -1)

    def _index(self, layer: RadixAttention) -> int:
        """The layer's number within this pipeline stage."""
        return layer.layer_id - self.pool.start_layer

    def _heads(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kv_heads, group, dim = self.engine.heads
        dtype = self.pool.compute_dtype
        return (
            q.reshape(-1, kv_heads * group, dim),
            k.reshape(-1, kv_heads, dim).to(dtype),
            v.reshape(-1, kv_heads, dim).to(dtype),
        )

    def support_triton(self) -> bool:
        """Whether SGLang may run its Triton helpers beside this backend."""
        return self.pool.device != "cpu"


def engine_inputs(runner: Any, pool: RheoKVPool) -> EngineInputs:
    """What an engine is built from, by a model runner whose model is loaded."""
    heads = loaded_heads(runner.model)
    if (heads.kv_heads, heads.dim) != (pool.head_num, pool.head_dim):
        raise ConfigError(
            f"--attention-backend: 'rheo' does not support this model, whose attention layers have {heads.kv_heads} KV "
            f"heads of size {heads.dim} where its configuration says {pool.head_num} of size {pool.head_dim}; "
            "allowed: layers as the configuration says"
        )
    pool.scales = layer_scales(runner.model, pool.dtype)
    req_to_token = runner.req_to_token_pool.req_to_token
    recorder, config = None, pool.config
    if config.recorder != "off":
        with_mass = config.recorder == "mass"
        rows = req_to_token.shape[0]
        with_coverage = config.tail and isinstance(pool.table.summary, EstimatingSummary)
        shape = rows, pool.layer_num, pool.head_num
        recorder = Recorder(*shape, pool.device, with_mass, with_coverage, config.budgets_grow)
    return EngineInputs(
        config=config,
        table=pool.table,
        host=pool.host,
        frames=pool.frames,
        heads=heads,
        page_size=pool.page_size,
        req_to_token=req_to_token,
        context_len=min(runner.model_config.context_len, req_to_token.shape[1]),
        recorder=recorder,
        tracer=None if config.trace is None else start_trace(runner, pool, heads),
        counts_fetched=runner.server_args.enable_metrics,
        scales=pool.scales,
        compute_dtype=pool.compute_dtype,
    )


def start_trace(runner: Any, pool: RheoKVPool, heads: HeadShape) -> Tracer:
    """Begin the trace that the settings ask for; each of several ranks has a folder of its own."""
    config, arguments = pool.config, runner.server_args
    assert config.trace is not None
    folder = Path(config.trace)
    if max(arguments.tp_size, arguments.pp_size, arguments.dp_size) > 1:
        ranks = (getattr(runner, "dp_rank", None) or 0, runner.pp_rank, runner.tp_rank)
        folder /= "rank-" + "-".join(map(str, ranks))
    shape = TracedShape(
        model=arguments.served_model_name or Path(arguments.model_path).name,
        page_size=pool.page_size,
        layers=pool.layer_num,
        first_layer=pool.start_layer,
        kv_heads=heads.kv_heads,
        group=heads.group,
        head_dim=heads.dim,
        pages=pool.table.pages,
        frames=pool.table.frames,
        summary=pool.table.summary.name,
        context_len=runner.model_config.context_len,
    )
    return open_trace(folder, config, shape, torch.device(pool.device))


def call_after_logits(model: torch.nn.Module, call: Callable[[torch.Tensor | None], None]) -> bool:
    """Have ``call`` run whenever a forward pass has launched all work up to its logits; False if it has none.

    It gets those of the next tokens, ``[B, V]``, as they are before sampling changes them; None of a pass without any.
    """
    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    for processor in processors:
        processor.register_forward_hook(lambda _module, _inputs, output: call(output.next_token_logits))
    return bool(processors)
