"""Checks the operands of an attention call and describes them to the extension, which sees addresses only."""

from __future__ import annotations

import torch

from rheo_kernels.cpu import _native
from rheo_kernels.types.kv_scales import EIGHT_BITS

DTYPES = {
    torch.float32: _native.Dtype.float32,
    torch.bfloat16: _native.Dtype.bfloat16,
    torch.float16: _native.Dtype.float16,
    EIGHT_BITS: _native.Dtype.float8,
}
PAGE_SIZES = (16, 32, 64)
DIM_MULTIPLE = 16


def check_shapes(q: torch.Tensor, blocks: torch.Tensor, page_size: int) -> None:
    """Raise ValueError, in one sentence, for the first operand that the kernels do not take."""
    if page_size not in PAGE_SIZES:
        raise ValueError(f"page_size is {page_size}; allowed: 16, 32, 64.")
    if q.dim() != 3 or blocks.dim() != 4:
        raise ValueError(f"q and blocks have {q.dim()} and {blocks.dim()} dimensions; allowed: 3 and 4.")
    _, num_queries, dim = q.shape
    heads = blocks.shape[0]
    if dim == 0 or dim % DIM_MULTIPLE:
        raise ValueError(f"The head size is {dim}; allowed: multiples of {DIM_MULTIPLE}.")
    if num_queries == 0 or heads == 0 or num_queries % heads:
        raise ValueError(f"There are {num_queries} query heads; allowed: multiples of the {heads} KV heads.")
    if blocks.shape[2:] != (2, dim * page_size):
        raise ValueError(f"blocks end in {tuple(blocks.shape[2:])}; allowed: {(2, dim * page_size)}.")
    if blocks.dtype not in DTYPES:
        raise ValueError(f"blocks are {blocks.dtype}; allowed: float32, bfloat16, float16, float8_e4m3fn.")
    if blocks.dtype == EIGHT_BITS:
        if q.dtype == EIGHT_BITS or q.dtype not in DTYPES:
            raise ValueError(f"q is {q.dtype}; allowed: float32, bfloat16, float16.")
    elif q.dtype not in (blocks.dtype, torch.float32):
        raise ValueError(f"q is {q.dtype}; allowed: {blocks.dtype} as the blocks, or float32.")
    if blocks.stride()[2:] != (dim * page_size, 1):
        raise ValueError(f"blocks have strides {blocks.stride()}; allowed: contiguous [2, D * P].")


def check_lists(batch: int, heads: int, index: torch.Tensor, valid: torch.Tensor) -> None:
    """Raise ValueError, in one sentence, for page lists that the kernels do not take."""
    for name, lists in (("index", index), ("valid", valid)):
        if lists.dtype != torch.int32:
            raise ValueError(f"{name} is {lists.dtype}; allowed: int32.")
        if lists.dim() != 3 or lists.shape != index.shape or lists.shape[:2] != (batch, heads):
            raise ValueError(
                f"{name} is {tuple(lists.shape)}; allowed: [{batch}, {heads}, S], S the same in both."
            )


def check_buffer(name: str, buffer: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise ValueError unless a buffer is contiguous, on the CPU, and of this shape and dtype."""
    if tuple(buffer.shape) != shape or buffer.dtype != dtype or not is_packed(buffer):
        raise ValueError(
            f"{name} is {buffer.dtype} {tuple(buffer.shape)} on {buffer.device.type}; "
            f"allowed: contiguous {dtype} {shape} on the CPU."
        )


def is_packed(buffer: torch.Tensor) -> bool:
    """Whether the extension can address a buffer as one contiguous array."""
    return buffer.device.type == "cpu" and buffer.is_contiguous()


def describe(
    q: torch.Tensor,
    blocks: torch.Tensor,
    lists: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    page_size: int,
    out: torch.Tensor,
    lse: torch.Tensor,
    batch: torch.Tensor,
    words: bool = False,
) -> _native.Problem:
    """The extension's description of checked operands. It holds addresses: the tensors must outlive it.

    ``lists`` are index and valid or, with ``words``, the words of `rheo_kernels.types.offload_words` for pages
    and counts.
    """
    names = ("entries", "counts") if words else ("index", "valid")
    addresses = {"entries": 0, "counts": 0, "index": 0, "valid": 0}
    addresses |= {name: one.data_ptr() for name, one in zip(names, lists, strict=True)}
    (index_strides, valid_strides) = ((0, 0), (0, 0)) if words else (one.stride()[:2] for one in lists)
    return _native.problem(
        heads=blocks.shape[0],
        group=q.shape[1] // blocks.shape[0],
        dim=q.shape[2],
        page_size=page_size,
        kv=DTYPES[blocks.dtype],
        query_dtype=DTYPES[q.dtype],
        scale=scale,
        query=q.data_ptr(),
        query_request_stride=q.stride(0),
        query_head_stride=q.stride(1),
        blocks=blocks.data_ptr(),
        block_head_stride=blocks.stride(0),
        block_stride=blocks.stride(1),
        num_blocks=blocks.shape[1],
        **addresses,
        index_request_stride=index_strides[0],
        index_head_stride=index_strides[1],
        valid_request_stride=valid_strides[0],
        valid_head_stride=valid_strides[1],
        columns=lists[0].shape[2],
        out=out.data_ptr(),
        lse=lse.data_ptr(),
        batch=batch.data_ptr(),
        max_batch=q.shape[0],
    )
