"""RheoAttentionBackend: SGLang's attention interface over prefill and decode steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

from rheo_sglang.batch import DecodeBatch, build_decode_batch, page_lists
from rheo_sglang.budget.controller import BudgetController
from rheo_sglang.config import ConfigError
from rheo_sglang.decode import DecodeStep
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.prefill import Prefill, PrefillRequest
from rheo_sglang.recorder import Recorder

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


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
        config = pool.config
        self.recorder = None
        if config.recorder != "off":
            self.recorder = Recorder(
                self.req_to_token.shape[0],
                pool.layer_num,
                pool.head_num,
                pool.device,
                with_mass=config.recorder == "mass",
            )
        self.controller = BudgetController(config, pool.head_num, self.page_size)
        self.decode = DecodeStep(config, pool.table, pool.host, pool.frames, self.page_size, self.recorder)
        self.prefill = Prefill(config, pool.table, pool.host, pool.frames, self.page_size, self.controller)
        self.decode_batch: DecodeBatch | None = None
        self.prefill_requests: list[PrefillRequest] = []

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Settle what the scheduler freed, and describe the batch in pages."""
        table = self.pool.table
        table.settle()
        mode = forward_batch.forward_mode
        if mode.is_idle():
            return
        table.describe(forward_batch.out_cache_loc, self.page_size)
        if not mode.is_decode():
            self.prefill_requests = self._prefill_requests(forward_batch)
            return
        slots = forward_batch.req_pool_indices
        self.decode_batch = build_decode_batch(
            self.req_to_token,
            slots,
            forward_batch.seq_lens,
            int(forward_batch.seq_lens_cpu.max()),
            self.page_size,
            self.controller,
        )
        table.step += 1
        table.list_pages(self.decode_batch.pages, self.decode_batch.num_pages)
        if self.recorder is not None:
            self.recorder.begin_step(forward_batch.rids, slots.tolist())

    def _prefill_requests(self, forward_batch: ForwardBatch) -> list[PrefillRequest]:
        slots = forward_batch.req_pool_indices
        prefixes, lengths = forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu
        totals = [prefix + length for prefix, length in zip(prefixes, lengths, strict=True)]
        counts = [-(-total // self.page_size) for total in totals]
        lists = page_lists(self.req_to_token, slots, max(totals), self.page_size)
        self.pool.table.list_pages(lists, torch.tensor(counts, dtype=torch.int32, device=lists.device))
        requests, start = [], 0
        for row, (prefix, length, count) in enumerate(zip(prefixes, lengths, counts, strict=True)):
            requests.append(PrefillRequest(start, length, prefix, lists[row, :count].long()))
            start += length
        return requests

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
        queries, keys, values = self._heads(q, k, v, layer)
        out = torch.empty_like(queries)
        self.prefill(
            layer.layer_id - self.pool.start_layer,
            queries,
            keys,
            values,
            forward_batch.out_cache_loc,
            self.prefill_requests,
            layer.scaling,
            out,
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
        assert self.decode_batch is not None
        queries, keys, values = self._heads(q, k, v, layer)
        out = self.decode(
            layer.layer_id - self.pool.start_layer, queries, keys, values, self.decode_batch, layer.scaling
        )
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
