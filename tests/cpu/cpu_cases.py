"""Inputs of the CPU kernel tests, and what the kernels must compute, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from unit.plain import relative_error

from rheo_kernels import reference
from rheo_kernels.types.kv_scales import EIGHT_BITS

ISAS = ("generic", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_emulated")
BFLOAT16_ISAS = ("avx512_bf16", "amx_bf16", "amx_emulated")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, EIGHT_BITS)
ARITHMETICS = [
    (isa, dtype)
    for isa in ISAS
    for dtype in DTYPES
    if isa not in BFLOAT16_ISAS or dtype in (torch.bfloat16, EIGHT_BITS)
]
Partial = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Case:
    """Operands of one call; ``blocks`` are host pages ``[X, H, 2, D * P]`` seen as ``[H, X, 2, D * P]``."""

    q: torch.Tensor
    blocks: torch.Tensor
    index: torch.Tensor
    valid: torch.Tensor
    page_size: int
    scale: float

    @property
    def operands(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float, int]:
        return self.q, self.blocks, self.index, self.valid, self.scale, self.page_size

    def expected(self) -> Partial:
        """Output and LSE in float64, over the tokens that are listed and valid."""
        batch, num_queries, dim = self.q.shape
        heads = self.blocks.shape[0]
        out = torch.zeros(batch, heads, num_queries // heads, dim, dtype=torch.float64)
        lse = torch.full(out.shape[:3], -math.inf, dtype=torch.float64)
        keys = reference.block_keys(self.blocks, self.page_size)
        values = reference.block_values(self.blocks, self.page_size)
        queries = self.q.double().view(out.shape)
        for request in range(batch):
            for head in range(heads):
                listed = [
                    (page, tokens)
                    for page, tokens in zip(
                        self.index[request, head].tolist(), self.valid[request, head].tolist(), strict=True
                    )
                    if page >= 0 and tokens > 0
                ]
                if not listed:
                    continue
                k = torch.cat([keys[head, page, :, :tokens] for page, tokens in listed], 1).double()
                v = torch.cat([values[head, page, :tokens] for page, tokens in listed]).double()
                logits = queries[request, head] @ k * self.scale
                out[request, head] = torch.softmax(logits, -1) @ v
                lse[request, head] = torch.logsumexp(logits, -1)
        return out.view(self.q.shape), lse.view(batch, num_queries)


def random_case(
    dtype: torch.dtype = torch.float32,
    group: int = 4,
    page_size: int = 16,
    dim: int = 64,
    batch: int = 3,
    heads: int = 2,
    pages: int = 7,
    width: int = 6,
    query_dtype: torch.dtype | None = None,
) -> Case:
    """Random pages, and lists of random lengths (0 to ``width``) with empty columns anywhere between."""
    index = torch.full((batch, heads, width), -1, dtype=torch.int32)
    valid = torch.zeros(batch, heads, width, dtype=torch.int32)
    for request in range(batch):
        for head in range(heads):
            count = int(torch.randint(0, min(width, pages) + 1, ()))
            columns = torch.randperm(width)[:count]
            index[request, head, columns] = torch.randperm(pages)[:count].int()
            valid[request, head, columns] = torch.randint(1, page_size + 1, (count,)).int()
    own = torch.bfloat16 if dtype == EIGHT_BITS else dtype
    q = torch.randn(batch, heads * group, dim).to(query_dtype or own)
    blocks = torch.randn(pages, heads, 2, dim * page_size).to(dtype).transpose(0, 1)
    return Case(q, blocks, index, valid, page_size, dim**-0.5)


def assert_attended(
    case: Case, result: Partial, isa: str = "generic", expected: Partial | None = None
) -> None:
    """Relative error below 1e-2 where products are taken in bfloat16, below 1e-5 elsewhere."""
    out, lse = result
    exact_out, exact_lse = expected or case.expected()
    narrow = isa in BFLOAT16_ISAS and case.q.dtype == torch.bfloat16
    narrow = narrow and case.blocks.dtype in (torch.bfloat16, EIGHT_BITS)
    assert out.dtype == lse.dtype == torch.float32
    assert torch.isfinite(out).all()
    assert relative_error(out, exact_out) < (1e-2 if narrow else 1e-5)
    empty = exact_lse == -math.inf
    assert torch.equal(lse == -math.inf, empty)
    assert not out[empty].any()
    torch.testing.assert_close(
        lse[~empty].double(), exact_lse[~empty], rtol=1e-5, atol=5e-3 if narrow else 1e-5
    )
