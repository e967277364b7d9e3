"""DecodeMemory: what the buffers of decode steps will take, before there are any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rheo_kernels.cuda import estimate
from rheo_sglang.config import RheoConfig
from rheo_sglang.cpu_offload.cpu_attention import CpuAttention
from rheo_sglang.decode.buffers import MOST_CANDIDATES, DecodeBuffers, StagedPages
from rheo_sglang.decode.cuda_attention import CudaAttention
from rheo_sglang.decode.heads import HeadShape, loaded_heads
from rheo_sglang.decode.make_attention import make_attention
from rheo_sglang.decode.variant import make_variants
from rheo_sglang.kv_dtypes import compute_dtype
from rheo_sglang.pools.plan import CORRECTIONS_SHARE, DECODE_SHARE, DecodeBytes
from rheo_sglang.prefill.calibrate import make_corrections
from rheo_sglang.selection import SUMMARIES, EstimatingSummary
from rheo_sglang.traces.memory import trace_bytes


@dataclass(frozen=True)
class DecodeMemory:
    """Counts the bytes of what an engine makes for requests, by making it on torch's ``meta`` device.

    An engine makes buffers for the steps that SGLang captures, and, when a batch is larger, once more for every row of
    the token table, which has one more than requests may run; a tracer does so with it. Corrections of estimates have
    as many rows. Not every page is taken to have a frame: misses are shared with the CPU and runners-up are
    listed, where settings and kernels allow it.

    Attributes
    ----------
    config
        Settings.
    heads
        Heads of this rank.
    layers, page_size, dtype
        Of the KV.
    compute_dtype
        What attention computes in; the KV dtype by default.
    plans_buffers
        Whether buffers of decode steps and of a trace are counted, and not only corrections.
    max_pages
        Pages of the longest request.
    device
        Where frames will be.
    captured
        Requests of the largest captured step; 0 if none is.
    frames
        Of a layer and KV head; more than are ever considered at once make no difference.
    """

    config: RheoConfig
    heads: HeadShape
    layers: int
    page_size: int
    dtype: torch.dtype
    max_pages: int
    device: torch.device
    captured: int
    frames: int = MOST_CANDIDATES
    compute_dtype: torch.dtype | None = None
    plans_buffers: bool = True

    @property
    def share(self) -> float:
        """Of the memory, for requests whose number is not given."""
        return DECODE_SHARE if self.plans_buffers else CORRECTIONS_SHARE

    @property
    def summary(self) -> str:
        """Name of the page summary."""
        return self.config.page_summary(self.heads.dim, self.page_size, self.compute_dtype or self.dtype)

    def of(self, requests: int) -> DecodeBytes:
        """Bytes of all that there is of steps of up to so many requests."""
        parts = [DecodeBytes(self._of_corrections(requests), 0)]
        if self.plans_buffers:
            batches = self._batches(requests)
            parts += [self._of_buffers(batch) for batch in batches]
            parts.append(self._of_trace(batches))
        return DecodeBytes(sum(part.device for part in parts), sum(part.pinned for part in parts))

    def _batches(self, requests: int) -> list[int]:
        """What buffers are made for, one after the other."""
        captured = min(self.captured, requests)
        return [captured] * (captured > 0) + [requests + 1] * (captured < requests)

    def _of_corrections(self, requests: int) -> int:
        if not self.config.corrects_estimates(self.summary):
            return 0
        shape = self.layers, requests, self.heads.kv_heads, self.max_pages
        return make_corrections(*shape, "meta").nbytes

    def _of_trace(self, batches: list[int]) -> DecodeBytes:
        if self.config.trace is None:
            return DecodeBytes(0, 0)
        variants = make_variants(self.config.budget_table(self.page_size, self.max_pages))
        columns, width = (max(sizes) for sizes in zip(*variants, strict=True))
        return DecodeBytes(*trace_bytes(batches, self.layers, self.heads.kv_heads, columns, width))

    def _of_buffers(self, batch: int) -> DecodeBytes:
        config, heads = self.config, self.heads
        block = heads.dim * self.page_size
        frames = torch.empty(1, dtype=self.dtype, device=self.device).expand(
            self.layers, heads.kv_heads, self.frames, 2, block
        )
        host = frames.transpose(1, 2)
        attention = make_attention(host, frames, heads, self.page_size, compute_dtype=self.compute_dtype)
        in_cuda = isinstance(attention, CudaAttention)
        summary = SUMMARIES[self.summary]()
        estimates = pairs = isinstance(summary, EstimatingSummary)
        if isinstance(summary, EstimatingSummary):
            layout = summary.layout(heads.dim, self.page_size)
            computed_in = self.compute_dtype or self.dtype
            pairs = estimate.pairs_requests(layout, heads.group, computed_in, self.device)
        variants = make_variants(config.budget_table(self.page_size, self.max_pages))
        width = max(variant.width for variant in variants)
        on_cpu = config.miss_mode == "split" or (config.miss_mode == "auto" and in_cuda)
        fetches = in_cuda or not on_cpu
        path: Any = StagedPages(batch, width, frames, "meta") if fetches else None
        buffers = DecodeBuffers(
            batch,
            variants,
            heads,
            frames,
            attention.workspace,
            path,
            on_cpu and in_cuda,
            attention.lists_runners_up,
            estimates,
            attends_tail=estimates and config.tail,
            pairs_requests=pairs,
            shares_workspaces=True,
            device="meta",
        )
        if not on_cpu:
            return DecodeBytes(bytes_of(buffers), 0)
        shape = host, batch, heads.group, width, self.page_size
        with torch.device("meta"):
            on_host = CpuAttention(*shape, threads=1, pinned=False, query_dtype=self.compute_dtype)
        return DecodeBytes(bytes_of(buffers), bytes_of(on_host))


def bytes_of(values: Any) -> int:
    """Bytes of all memory of tensors on the ``meta`` device in a container or an object of this package, once each."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in _tensors(values)}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        if values.is_meta:
            yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)
    elif type(values).__module__.startswith("rheo_sglang."):
        yield from _tensors(vars(values))


def decode_memory(configurator: Any, config: RheoConfig, captures: bool) -> DecodeMemory | None:
    """What requests of a server that is starting will take; None if nothing of it is planned.

    Parameters
    ----------
    configurator
        SGLang's ``KVCacheConfigurator``, whose model is loaded.
    config
        Settings.
    captures
        Whether decode steps can be captured; others have no buffers to plan.
    """
    captured = 0
    if captures:
        from sglang.srt.runtime_context import get_exec

        graphs = get_exec().graph.cuda_graph_config.decode
        captured = 0 if graphs.backend == "disabled" or not graphs.bs else max(graphs.bs)
    memory = DecodeMemory(
        config,
        loaded_heads(configurator.model),
        configurator.layer_info.num_effective_layers,
        configurator.page_size,
        configurator.kv_cache_dtype,
        -(-configurator.model_config.context_len // configurator.page_size),
        torch.device(configurator.device),
        captured,
        compute_dtype=compute_dtype(configurator.kv_cache_dtype, configurator.model_config.dtype),
        plans_buffers=config.plan_decode_buffers and captures,
    )
    return memory if memory.plans_buffers or config.corrects_estimates(memory.summary) else None
