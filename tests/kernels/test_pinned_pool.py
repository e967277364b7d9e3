"""A pinned host pool is one piece of memory to the GPU, whatever pieces it was pinned in."""

from __future__ import annotations

import pytest
import torch

from rheo_kernels import reference


@pytest.mark.gpu
def test_kernels_reach_every_page_of_a_pool_pinned_in_pieces() -> None:
    from rheo_kernels import triton as kernels
    from rheo_sglang.pools.pinned import pinned_zeros

    pages, heads, block = 40, 2, 64 * 32
    host = pinned_zeros((pages, heads, 2, block), torch.bfloat16, piece_bytes=1 << 16)
    assert host.eq(0).all()
    frames = torch.randn((heads, pages, 2, block), device="cuda").bfloat16()
    table = torch.arange(pages, dtype=torch.int32, device="cuda").expand(heads, -1).contiguous()
    listed = torch.arange(pages, dtype=torch.int32, device="cuda")
    kernels.save(frames, host, table, listed)
    torch.cuda.synchronize()
    expected = torch.zeros_like(host)
    reference.save(frames.cpu(), expected, table.cpu(), listed.cpu()[1:])
    assert torch.equal(host, expected)


@pytest.mark.gpu
def test_memory_is_unpinned_with_its_last_view() -> None:
    from rheo_sglang.pools.pinned import pinned_zeros

    for _ in range(4):
        host = pinned_zeros((1 << 20,), torch.uint8, piece_bytes=1 << 18)
        view = host[1 << 19 :][: 1 << 18]
        del host
        assert int(view.cuda().sum()) == 0
        del view
