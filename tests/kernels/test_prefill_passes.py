"""Prefill with the Triton kernels: chunk after chunk, every layer attends densely and leaves the same pages behind."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from triton_cases import Shape, normal, permutation, relative_error, same

from rheo_kernels import reference
from rheo_kernels.types import UNSCALED, KVScales
from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool
from rheo_sglang.prefill import Prefill, build_prefill_batch

LAYERS, FRAMES = 3, 6
ERROR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
SHAPES = [
    Shape(),
    Shape(group=2, dim=128, page_size=32, dtype=torch.float16),
    Shape(group=2, dim=32, stored=EIGHT_BITS),
]
SCALES = [KVScales(0.5, 0.03), KVScales(), KVScales(3.0, 7.0)]
"""Of each layer, where pages are of 8 bits."""


class Prompts:
    """Prompts that are prefilled in chunks, on the CPU in Triton's interpreter or on the GPU with its streams."""

    def __init__(self, shape: Shape, lengths: list[int], rng: torch.Generator) -> None:
        from rheo_sglang.decode.gpu_residency import GpuResidency

        device, size, heads = rng.device, shape.page_size, shape.heads
        pages = 2 + sum(-(-length // size) for length in lengths)
        self.shape = shape
        pool = LAYERS, pages, heads, shape.dim, size, shape.kv
        self.scales = [UNSCALED] * LAYERS if shape.stored is None else SCALES
        self.table = PageTable(
            LAYERS,
            heads,
            shape.dim,
            size,
            pages,
            FRAMES,
            "bound",
            "importance",
            shape.dtype,
            device,
            triton=True,
        )
        self.host = host_pool(*pool, pinned=device.type == "cuda")
        self.frames = frame_pool(LAYERS, heads, FRAMES, shape.dim, size, shape.kv, device)
        residency = GpuResidency(self.table, self.host, self.frames)
        self.prefill = Prefill(
            self.table,
            self.host,
            self.frames,
            size,
            residency,
            scales=self.scales,
            compute_dtype=shape.dtype,
        )
        self.expected_host, self.expected_summaries = self.host.clone(), self.table.summaries.cpu().clone()
        tokens = sum(lengths)
        self.q = normal((LAYERS, tokens, heads * shape.group, shape.dim), shape.dtype, rng)
        self.k, self.v = (normal((LAYERS, tokens, heads, shape.dim), shape.dtype, rng) for _ in range(2))
        self.first = list(accumulate(lengths, initial=0))[:-1]
        order = permutation(pages - 1, rng) + 1
        self.pages = order.split([-(-length // size) for length in lengths] + [1])[:-1]
        self.done = [0] * len(lengths)

    def run(self, lengths: list[int]) -> None:
        """Prefill the next tokens of every prompt and hold outputs and pages against references."""
        size, device = self.shape.page_size, self.q.device
        ends = [done + length for done, length in zip(self.done, lengths, strict=True)]
        width = max(-(-end // size) for end in ends)
        lists = torch.zeros((len(ends), width), dtype=torch.int32, device=device)
        rows, slots = [], []
        for prompt, (done, end) in enumerate(zip(self.done, ends, strict=True)):
            position = torch.arange(done, end, device=device)
            rows.append(self.first[prompt] + position)
            slots.append(self.pages[prompt][position // size] * size + position % size)
            count = -(-end // size)
            lists[prompt, :count] = self.pages[prompt][:count].to(torch.int32)
        row, slot = torch.cat(rows), torch.cat(slots)
        batch = build_prefill_batch(lists, self.done, lengths, size, room=self.prefill.room)
        self.prefill.begin(batch, batch.num_pages, torch.arange(len(lengths), device=lists.device))
        inputs = [[part[layer][row] for part in (self.q, self.k, self.v)] for layer in range(LAYERS)]
        outs = [
            self.prefill(layer, *parts, slot, batch, self.shape.dim**-0.5)
            for layer, parts in enumerate(inputs)
        ]
        if device.type == "cuda":
            torch.cuda.synchronize()
        for layer, (out, (_, k, v)) in enumerate(zip(outs, inputs, strict=True)):
            assert relative_error(out, self.dense(layer, ends)) < ERROR[self.shape.dtype]
            reference.write(
                *(part.cpu() for part in self.stored(layer, k, v)),
                slot.cpu(),
                self.expected_host[layer],
                self.table.summary,
                self.expected_summaries[layer],
                size,
            )
        assert same(self.host, self.expected_host)
        assert torch.equal(self.table.summaries.cpu(), self.expected_summaries)
        self.done = ends

    def stored(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        """K and V as pages hold them."""
        pairs = zip((k, v), self.scales[layer], strict=True)
        return [reference.quantise(part, scale, self.shape.kv) for part, scale in pairs]

    def dense(self, layer: int, ends: list[int]) -> torch.Tensor:
        """Attention of the chunks' tokens, ``[T, Hq, D]``, float64."""
        parts = []
        for first, done, end in zip(self.first, self.done, ends, strict=True):
            q = self.q[layer, first + done : first + end].double().unflatten(1, (self.shape.heads, -1))
            held = self.stored(layer, *(part[layer, first : first + end] for part in (self.k, self.v)))
            k, v = (part.double() * scale for part, scale in zip(held, self.scales[layer], strict=True))
            logits = torch.einsum("qhgd,thd->hgqt", q, k) * self.shape.dim**-0.5
            position = torch.arange(end, device=q.device)
            logits.masked_fill_(position > position[done:, None], -torch.inf)
            parts.append(torch.einsum("hgqt,thd->qhgd", logits.softmax(3), v).flatten(1, 2))
        return torch.cat(parts)

    def check_frames(self) -> None:
        """Invariant 2, and every resident page is its host page."""
        self.table.check()
        resident = 0
        for layer, head, page in (self.table.frame_of >= 0).nonzero().tolist():
            frame = self.frames[layer, head, self.table.frame_of[layer, head, page].long()]
            assert same(frame.cpu(), self.host[layer, page, head])
            resident += 1
        assert resident > 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_attend_everything_before_them(
    shape: Shape, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rheo_kernels import triton as kernels

    monkeypatch.setattr("rheo_sglang.prefill.prefill.kernels_of", lambda device: kernels)
    prompts = Prompts(shape, [150, 90], rng)
    for lengths in ([64, 20], [37, 69], [49, 1]):
        prompts.run(lengths)
        prompts.check_frames()
    assert (prompts.table.policy.worth[:, :, torch.cat(prompts.pages)] > 0).all()


def test_a_warm_up_leaves_no_trace_and_fixes_shapes(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rheo_kernels import triton as kernels

    monkeypatch.setattr("rheo_sglang.prefill.prefill.kernels_of", lambda device: kernels)
    shape = Shape(heads=1, group=2)
    prompts = Prompts(shape, [50, 20], rng)
    prompts.prefill.warm_up(shape.group, 12)
    assert prompts.prefill.room == 16
    prompts.table.check()
    assert (prompts.table.page_of < 0).all()
    assert not prompts.table.policy.worth.any()
    assert not prompts.host[:, 1:].any()
    prompts.expected_host.copy_(prompts.host)
    prompts.expected_summaries.copy_(prompts.table.summaries)
    prompts.run([40, 20])
    prompts.check_frames()


@pytest.mark.gpu
def test_long_chunks_attend_everything_before_them(rng: torch.Generator) -> None:
    shape = Shape(heads=8, group=4, dim=128, page_size=32, dtype=torch.bfloat16)
    prompts = Prompts(shape, [6000, 3000], rng)
    for lengths in ([2048, 1000], [2000, 1999], [1952, 1]):
        prompts.run(lengths)
        prompts.check_frames()
