"""RheoAttentionBackend: SGLang's attention interface over prefill and decode steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.logits_processor import LogitsProcessor

from rheo_kernels.cpu import CPU_ISA, fastest_isa
from rheo_sglang.config import ConfigError
from rheo_sglang.cpu_offload.cpu_attention import default_cpu_threads
from rheo_sglang.decode.batch import DecodeBatch, build_decode_batch, page_lists
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.reference_engine import DecodeStep
from rheo_sglang.decode.reference_residency import Residency
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.prefill import Prefill, PrefillBatch, build_prefill_batch
from rheo_sglang.recorder import Recorder
from rheo_sglang.validate import captures_decode

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from rheo_sglang.decode.gpu_engine import CudaDecode
    from rheo_sglang.decode.variant import Variant


class RheoAttentionBackend(AttentionBackend):
    """Dense prefill, sparse decode.

    Parameters
    ----------
    runner
        SGLang's model runner; its KV pool is a `RheoKVPool`.

    Raises
    ------
    ConfigError
        If SGLang built another KV pool, which means that the model is of a kind that rheo does not serve.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__()
        pool = runner.token_to_kv_pool
        if not isinstance(pool, RheoKVPool):
            raise ConfigError(
                f"--attention-backend: 'rheo' does not support the KV pool {type(pool).__name__} of this model; "
                "allowed: dense GQA or MHA models (Llama, Qwen3, ...)"
            )
        self.pool = pool
        self.page_size = pool.page_size
        self.req_to_token = runner.req_to_token_pool.req_to_token
        self.context_len = min(runner.model_config.context_len, self.req_to_token.shape[1])
        self.chunk_tokens = runner.server_args.chunked_prefill_size or 0
        config = pool.config
        group = runner.model_config.num_attention_heads // runner.model_config.get_total_num_kv_heads()
        cpu_attention = use_fastest_cpu_attention(pool, group)
        self.recorder = None
        if config.recorder != "off":
            self.recorder = Recorder(
                self.req_to_token.shape[0],
                pool.layer_num,
                pool.head_num,
                pool.device,
                with_mass=config.recorder == "mass",
            )
        self.budget = config.budget_table(self.page_size, -(-self.context_len // self.page_size), pool.device)
        self.decode_batch: DecodeBatch | None = None
        self.prefill_batch: PrefillBatch | None = None
        self.rids: list[str] | None = None
        self.capturing: Variant | None = None
        self.cuda: CudaDecode | None = None
        if captures_decode(config, pool.device):
            from rheo_sglang.decode.gpu_engine import CudaDecode

            self.cuda = CudaDecode(
                config,
                pool.table,
                pool.host,
                pool.frames,
                HeadShape(pool.head_num, group, pool.head_dim),
                self.req_to_token,
                self.budget,
                self.recorder,
                cpu_attention,
            )
            self.cuda.ended_by_model = runner.server_args.pp_size == 1 and call_after_logits(
                runner.model, self.cuda.end_step
            )
            self.prefill = Prefill(
                config, pool.table, pool.host, pool.frames, self.page_size, self.cuda.residency
            )
            self.prefill.warm_up(group, -(-self.context_len // self.page_size))
        else:
            residency = Residency(pool.table, pool.host, pool.frames)
            self.decode = DecodeStep(
                config,
                pool.table,
                pool.host,
                pool.frames,
                self.page_size,
                residency,
                self.recorder,
                cpu_attention,
            )
            self.prefill = Prefill(config, pool.table, pool.host, pool.frames, self.page_size, residency)

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Settle what the scheduler freed, and describe the batch in pages; also before a step without a graph."""
        mode = forward_batch.forward_mode
        if self.cuda is not None and mode.is_decode():
            self.rids = forward_batch.rids
            self.init_forward_metadata_out_graph(forward_batch)
            return
        table = self.pool.table
        if self.cuda is not None:
            self.cuda.settle()
        else:
            table.settle()
        if mode.is_idle():
            return
        table.note_summaries(forward_batch.out_cache_loc, self.page_size)
        if not mode.is_decode():
            self._begin_prefill(forward_batch)
            if self.cuda is not None:
                self.cuda.note_prefill()
            return
        rows = None
        if self.recorder is not None:
            num_pages = -(-forward_batch.seq_lens_cpu // self.page_size)
            rows = self.recorder.begin_step(forward_batch.rids, num_pages)
        self.decode_batch = build_decode_batch(
            self.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            int(forward_batch.seq_lens_cpu.max()),
            self.page_size,
            self.budget,
            self.pool.head_num,
            rows,
        )
        table.begin_step()
        table.list_pages(self.decode_batch.pages, self.decode_batch.num_pages)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Allocate what the captured kernels share."""
        assert self.cuda is not None
        self.cuda.reserve(max_bs)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Length of padded rows, which are told apart by their number and not by this."""
        return 1

    def init_forward_metadata_out_graph(self, forward_batch: ForwardBatch, in_capture: bool = False) -> None:
        """Describe a decode step's batch, padded rows included, before its graph is captured or replayed."""
        assert self.cuda is not None
        self.cuda.settle()
        padding = getattr(forward_batch, "num_padding", 0)
        self.cuda.prepare(
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            forward_batch.seq_lens_cpu,
            0 if in_capture else forward_batch.batch_size - padding,
            self.rids,
            self.capturing if in_capture else None,
        )

    def graph_variants(self) -> list[Variant]:
        """Shapes that the decode step is captured in."""
        assert self.cuda is not None
        return self.cuda.variants

    def graph_label(self) -> str:
        """Name of the shape that the prepared step runs in; SGLang's runner finds its graph by it."""
        assert self.cuda is not None
        return str(self.cuda.variants[0] if self.cuda.step is None else self.cuda.step.variant)

    def _begin_prefill(self, forward_batch: ForwardBatch) -> None:
        prefixes, lengths = forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu
        longest, room = self.context_len, self.prefill.room
        if self.cuda is None:
            longest = max(prefix + length for prefix, length in zip(prefixes, lengths, strict=True))
        pages = page_lists(self.req_to_token, forward_batch.req_pool_indices, longest, self.page_size)
        goes_on = 0 < self.chunk_tokens <= sum(lengths)
        self.prefill_batch = build_prefill_batch(pages, prefixes, lengths, self.page_size, goes_on, room)
        self.pool.table.list_pages(pages, self.prefill_batch.num_pages)
        self.prefill.begin(self.prefill_batch)

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
        queries, keys, values = self._heads(q, k, v, layer)
        out = self.prefill(
            layer.layer_id - self.pool.start_layer,
            queries,
            keys,
            values,
            forward_batch.out_cache_loc,
            self.prefill_batch,
            layer.scaling,
        )
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
        queries, keys, values = self._heads(q, k, v, layer)
        index = layer.layer_id - self.pool.start_layer
        if self.cuda is not None:
            fused = torch.empty(queries.shape, dtype=q.dtype, device=q.device)
            self.cuda(index, queries, keys, values, layer.scaling, fused)
            return fused.view(q.shape[0], -1)
        assert self.decode_batch is not None
        out = self.decode(index, queries, keys, values, self.decode_batch, layer.scaling)
        return out.to(q.dtype).view(q.shape[0], -1)

    def _heads(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: RadixAttention
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dim = self.pool.head_dim
        dtype = self.pool.dtype
        return (
            q.reshape(-1, layer.tp_q_head_num, dim),
            k.reshape(-1, layer.tp_k_head_num, dim).to(dtype),
            v.reshape(-1, layer.tp_v_head_num, dim).to(dtype),
        )

    def support_triton(self) -> bool:
        """Whether SGLang may run its Triton helpers beside this backend."""
        return self.pool.device != "cpu"


def call_after_logits(model: torch.nn.Module, call: Callable[[], None]) -> bool:
    """Have ``call`` run whenever a forward pass has launched all work up to its logits; False if it has none."""
    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    for processor in processors:
        processor.register_forward_hook(lambda *_: call())
    return bool(processors)


def use_fastest_cpu_attention(pool: RheoKVPool, group: int) -> bool:
    """Have this process attend on the CPU with the variant that is fastest here; False if none works."""
    threads = pool.config.cpu_threads or (None if pool.device == "cpu" else default_cpu_threads())
    isa = fastest_isa(pool.host[0].transpose(0, 1), group, pool.page_size, threads)
    if isa is not None:
        os.environ[CPU_ISA] = isa
    return isa is not None
