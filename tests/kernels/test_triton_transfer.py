"""load and save move exactly the blocks they are told to, between pinned host memory and frames."""

from __future__ import annotations

import pytest
import torch
from triton_cases import EIGHT_BIT_SHAPES, Shape, normal, permutation, residency, same, to_device

from rheo_kernels import reference


def host_pages(shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> torch.Tensor:
    """Host pages, pinned where there is a GPU."""
    pages = normal(shape, dtype, rng).cpu()
    return pages.pin_memory() if rng.device.type == "cuda" else pages


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    "shape", [Shape(dim=80, dtype=torch.bfloat16), Shape(dim=64, page_size=32), EIGHT_BIT_SHAPES[1]], ids=str
)
def test_load_equals_reference(shape: Shape, layers: int, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    heads, total, frames, columns = shape.heads, 15, 9, 6
    rows = layers * heads
    host = host_pages((layers, total, heads, 2, shape.block), shape.kv, rng)
    pool = normal((layers, heads, frames, 2, shape.block), shape.kv, rng)
    pages = torch.stack([permutation(total, rng)[:columns] for _ in range(rows)]).to(torch.int32)
    targets = torch.stack([permutation(frames, rng)[:columns] for _ in range(rows)]).to(torch.int32)
    counts = to_device([columns, 0, 3, 1][:rows], rng)
    expected = pool.clone()
    for layer in range(layers):
        rows = slice(layer * heads, (layer + 1) * heads)
        reference.load(host[layer].to(rng.device), expected[layer], pages[rows], targets[rows], counts[rows])
    if layers == 1:
        kernels.load(host[0], pool[0], pages, targets, counts)
    else:
        kernels.load(host, pool, pages, targets, counts)
    assert same(pool, expected)


@pytest.mark.parametrize("layers", [1, 2])
def test_save_equals_reference_and_skips_absent_pages(layers: int, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    shape = Shape(dim=96, page_size=16, dtype=torch.float16)
    heads, total, frames = shape.heads, 10, 10
    host = host_pages((layers, total, heads, 2, shape.block), shape.dtype, rng)
    pool = normal((layers, heads, frames, 2, shape.block), shape.dtype, rng)
    table = torch.stack([residency(heads, total, frames, rng)[0] for _ in range(layers)])
    table[:, :, 4] = -1
    present = [page for page in range(1, total) if bool((table[:, :, page] >= 0).all())]
    expected = host.clone().to(rng.device)
    for layer in range(layers):
        reference.save(pool[layer], expected[layer], table[layer], torch.tensor(present, device=rng.device))
    listed = to_device([0, *present, 4, -1], rng)
    if layers == 1:
        kernels.save(pool[0], host[0], table[0], listed)
    else:
        kernels.save(pool, host, table, listed)
    if rng.device.type == "cuda":
        torch.cuda.synchronize()
    assert torch.equal(host, expected.cpu())
