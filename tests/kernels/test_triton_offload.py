"""offload_misses copies queries and misses to where the CPU attends them, and `CpuAttention` attends them."""

from __future__ import annotations

import torch
from triton_cases import SHAPES, integers, normal, relative_error

from rheo_kernels import reference


def test_misses_are_attended_on_the_cpu(rng: torch.Generator) -> None:
    from rheo_kernels.types import Selected
    from rheo_sglang.cpu_offload.cpu_attention import CpuAttention

    shape = SHAPES[0]
    heads, group, size, width, total, layers = shape.heads, shape.group, shape.page_size, 14, 30, 2
    pinned = rng.device.type == "cuda"
    host = normal((layers, total, heads, 2, shape.block), shape.dtype, rng).cpu()
    host = host.pin_memory() if pinned else host
    cpu = CpuAttention(host, 4, group, width + 5, size, threads=2, pinned=pinned)
    for batch, layer in ((3, 0), (1, 1), (3, 1)):
        q = normal((batch, heads * group, shape.dim), shape.dtype, rng)
        selected = Selected.allocate(batch, heads, width, rng.device)
        selected.misses.copy_(integers(1, total, (batch, heads, width), rng))
        selected.valid.copy_(integers(1, size + 1, (batch, heads, width), rng))
        last = integers(0, width + 1, (batch, heads), rng)
        first = (last * torch.rand((batch, heads), generator=rng, device=rng.device)).to(torch.int32)
        cpu(layer, q, selected, first, last, 0.125)
        if pinned:
            torch.cuda.synchronize()
        column = torch.arange(width, device=rng.device)
        listed = (column >= first[..., None]) & (column < last[..., None])
        expected = reference.attend(
            q.cpu(),
            host[layer].transpose(0, 1),
            selected.misses.masked_fill(~listed, -1).cpu(),
            selected.valid.cpu(),
            0.125,
            size,
        )
        assert relative_error(cpu.out[:batch], expected[0]) < 1e-5
        filled = expected[1] > -torch.inf
        assert torch.equal(cpu.lse[:batch] > -torch.inf, filled)
        torch.testing.assert_close(cpu.lse[:batch][filled], expected[1][filled])


def test_offloaded_queries_and_words_equal_the_reference(rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels
    from rheo_sglang.cpu_offload.cpu_attention import OffloadBuffers

    shape, batch, width = SHAPES[0], 3, 11
    heads, pinned = shape.heads, rng.device.type == "cuda"
    q = normal((batch, heads * shape.group, shape.dim), shape.dtype, rng)
    misses = integers(0, 2**20, (batch, heads, width), rng)
    valid = integers(1, shape.page_size + 1, (batch, heads, width), rng)
    first = integers(0, 4, (batch, heads), rng)
    last = first + integers(0, width - 2, (batch, heads), rng)
    last[0] = first[0]
    last[1] = width
    lists = q, misses, valid, first, last
    actual, expected = (
        OffloadBuffers.allocate(batch + 1, heads, shape.group, shape.dim, width, shape.dtype, pinned)
        for _ in range(2)
    )
    requests = torch.zeros(1, dtype=torch.int32, pin_memory=pinned)
    kernels.offload_misses(*lists, *actual, requests)
    reference.offload_misses(*lists, *expected)
    if pinned:
        torch.cuda.synchronize()
    assert int(requests) == batch
    for mine, theirs in zip(actual, expected, strict=True):
        assert torch.equal(mine, theirs)
    assert expected.entries.any() and not expected.q[0].any(), "empty lists need no queries"
