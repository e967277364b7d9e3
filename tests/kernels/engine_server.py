"""EngineServer: an engine with pools, a page table and requests' pages, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rheo_kernels.types import KVScales
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.engine import EngineInputs
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool
from rheo_sglang.recorder import Recorder
from rheo_sglang.selection import EstimatingSummary
from rheo_sglang.traces import Tracer

LAYERS, HEADS, GROUP, DIM, PAGE_SIZE, PAGES = 2, 2, 2, 32, 16, 60
CONTEXT = 14 * PAGE_SIZE
SCALE = DIM**-0.5
ROWS = 4
HEAD_SHAPE = HeadShape(HEADS, GROUP, DIM)


class EngineServer:
    """Either engine: the reference on the CPU, or the GPU's on the tests' device.

    Parameters
    ----------
    config
        Settings.
    frames
        Frames of each layer and KV head.
    device
        Where the frames are.
    gpu
        Which engine.
    dtype
        KV dtype; also of queries and outputs, if not of 8 bits.
    tracer
        Records its steps.
    compute_dtype
        Of queries and outputs where the KV dtype is of 8 bits.
    scales
        Of every layer, of 8 bits.
    options
        More for the engine.
    """

    def __init__(
        self,
        config: RheoConfig,
        frames: int,
        device: torch.device,
        gpu: bool,
        dtype: torch.dtype = torch.float32,
        tracer: Tracer | None = None,
        compute_dtype: torch.dtype | None = None,
        scales: Sequence[KVScales] = (),
        **options: Any,
    ) -> None:
        self.device = device
        self.kv_dtype, self.dtype = dtype, compute_dtype or dtype
        self.table = PageTable(
            LAYERS,
            HEADS,
            DIM,
            PAGE_SIZE,
            PAGES,
            frames,
            config.page_summary(DIM, PAGE_SIZE, self.dtype),
            config.policy,
            self.dtype,
            device,
            triton=gpu,
        )
        self.host = host_pool(LAYERS, PAGES, HEADS, DIM, PAGE_SIZE, dtype, device.type == "cuda")
        self.frames = frame_pool(LAYERS, HEADS, frames, DIM, PAGE_SIZE, dtype, device)
        with_coverage = config.tail and isinstance(self.table.summary, EstimatingSummary)
        self.recorder = Recorder(ROWS, LAYERS, HEADS, device, False, with_coverage, config.budgets_grow)
        self.tokens = torch.zeros((ROWS, CONTEXT), dtype=torch.int32, device=device)
        inputs = EngineInputs(
            config,
            self.table,
            self.host,
            self.frames,
            HEAD_SHAPE,
            PAGE_SIZE,
            self.tokens,
            CONTEXT,
            self.recorder,
            tracer=tracer,
            counts_fetched=True,
            scales=scales,
            compute_dtype=self.dtype,
        )
        self.engine = engine_class(gpu)(inputs, **options)
        self.engine.note_prefill()

    def prefill(self, row: int, pages: list[int], noise: torch.Tensor, summaries: torch.Tensor) -> None:
        """Give a request pages whose content is noise, and summaries that need not match it."""
        for column, page in enumerate(pages):
            start = column * PAGE_SIZE
            slots = page * PAGE_SIZE + torch.arange(PAGE_SIZE, dtype=torch.int32)
            self.tokens[row, start : start + PAGE_SIZE] = slots.to(self.device)
        self.host[:, pages] = noise[:, pages].to(self.kv_dtype)
        self.table.summaries[:, :, pages] = summaries[:, :, pages].to(self.device, self.table.summaries.dtype)

    def step(
        self, lengths: dict[int, int], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """One decode step of every layer, rows beyond the requests padded: ``[L, B, Hq, D]``, float32, on the CPU."""
        padding = q.shape[1] - len(lengths)
        rows = torch.tensor([*lengths, *[0] * padding], device=self.device)
        seq_lens = torch.tensor([*lengths.values(), *[1] * padding])
        q, k, v = (tensor.to(self.device, self.dtype) for tensor in (q, k, v))
        out = torch.full(q.shape, torch.nan, dtype=self.dtype, device=self.device)
        self.engine.settle()
        self.engine.begin_step(
            rows, seq_lens.to(self.device), seq_lens, len(lengths), [str(row) for row in lengths]
        )
        self.run_layers(q, k, v, out)
        return out.float().cpu()

    def run_layers(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """All layers of the step that was begun."""
        for layer in range(LAYERS):
            self.engine.forward(layer, q[layer], k[layer], v[layer], SCALE, out[layer])
        self.engine.end_step()


def engine_class(gpu: bool) -> Any:
    """The GPU's engine, which imports Triton only now, or the reference."""
    if gpu:
        from rheo_sglang.decode.gpu_engine import GpuDecodeEngine

        return GpuDecodeEngine
    from rheo_sglang.decode.reference_engine import ReferenceDecodeEngine

    return ReferenceDecodeEngine
