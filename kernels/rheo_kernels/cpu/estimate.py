"""estimate: the attention that each page draws, as a log-sum-exp for every query head, from its summary alone."""

from __future__ import annotations

import torch

from rheo_kernels.cpu import _native
from rheo_kernels.cpu.problem import PAGE_SIZES
from rheo_kernels.cpu.settings import checked_threads, forced_isa
from rheo_kernels.types.subcentroids import SubcentroidLayout


def estimate(
    q: torch.Tensor,
    summaries: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    layout: SubcentroidLayout,
    threads: int | None = None,
) -> torch.Tensor:
    """Estimate the log-sum-exp of the logits of every page's keys, as `rheo_kernels.reference.estimate` does.

    Parameters
    ----------
    q
        Queries, ``[B, Hq, D]``, floating; multiplied in float32.
    summaries
        One layer's summaries, ``[H, N, W]``, uint8, any strides over ``H`` and ``N``.
    pages
        Page lists, ``[B, M]``, int32 logical pages; entries past a request's last page are ignored.
    seq_lens
        Tokens of each request, ``[B]``, integer.
    scale
        Softmax scale.
    layout
        Of the summaries.
    threads
        Threads to use, the caller among them; None for `default_threads`.

    Returns
    -------
    torch.Tensor
        ``[B, Hq, M]``, float32, natural logarithm; ``-inf`` past each request's last page.

    Raises
    ------
    ValueError
        If an operand, ``RHEO_CPU_ISA`` or ``RHEO_CPU_THREADS`` is not one the kernel takes.
    IndexError
        If a request's page does not exist.

    Notes
    -----
    Reads the rows, the centre and the scales of every page once for the whole GQA group: ``R * D / 2`` bytes and a
    little. Bound by ``R * D * (G + 2)`` multiply-adds a page.
    """
    check_operands(q, summaries, pages, seq_lens, layout)
    heads, num_pages, _ = summaries.shape
    batch, queries, dim = q.shape
    wide = q.float().contiguous()
    listed = pages.contiguous()
    lengths = seq_lens.to(torch.int32).contiguous()
    lse = torch.empty((batch, queries, pages.shape[1]))
    missing = _native.estimate(
        batch=batch,
        heads=heads,
        group=queries // heads,
        dim=dim,
        page_size=layout.page_size,
        row_tokens=layout.row_tokens,
        block_rows=layout.interleaved_rows,
        columns=layout.columns,
        centre_bits=layout.centre_bits,
        centre_offset=layout.centre_offset,
        scales_offset=layout.scales_offset,
        scale=scale,
        query=wide.data_ptr(),
        summaries=summaries.data_ptr(),
        summary_head_stride=summaries.stride(0),
        summary_stride=summaries.stride(1),
        num_pages=num_pages,
        pages=listed.data_ptr(),
        seq_lens=lengths.data_ptr(),
        width=pages.shape[1],
        lse=lse.data_ptr(),
        threads=checked_threads(threads),
        isa=forced_isa(),
    )
    if missing:
        raise IndexError(f"{missing} listed pages do not exist; allowed: 0 to {num_pages - 1}.")
    return lse


def check_operands(
    q: torch.Tensor,
    summaries: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor,
    layout: SubcentroidLayout,
) -> None:
    """Raise ValueError, in one sentence, for the first operand that the kernel does not take."""
    operands = {"q": q, "summaries": summaries, "pages": pages, "seq_lens": seq_lens}
    for (name, operand), dims in zip(operands.items(), (3, 3, 2, 1), strict=True):
        if operand.dim() != dims or operand.device.type != "cpu":
            raise ValueError(
                f"{name} has {operand.dim()} dimensions on {operand.device.type}; allowed: {dims} on the CPU."
            )
    batch, queries, dim = q.shape
    heads = summaries.shape[0]
    if layout.page_size not in PAGE_SIZES:
        raise ValueError(f"page_size is {layout.page_size}; allowed: 16, 32, 64.")
    if dim != layout.head_dim:
        raise ValueError(f"The head size is {dim}; allowed: {layout.head_dim}, that of the layout.")
    if queries == 0 or heads == 0 or queries % heads:
        raise ValueError(f"There are {queries} query heads; allowed: multiples of the {heads} KV heads.")
    if summaries.dtype != torch.uint8 or summaries.shape[2] != layout.width or summaries.stride(2) != 1:
        raise ValueError(
            f"summaries are {summaries.dtype} {tuple(summaries.shape)} with strides {summaries.stride()}; "
            f"allowed: uint8, the last dimension {layout.width} and contiguous."
        )
    if pages.dtype != torch.int32 or pages.shape[0] != batch:
        raise ValueError(f"pages are {pages.dtype} {tuple(pages.shape)}; allowed: int32 [{batch}, M].")
    if seq_lens.is_floating_point() or seq_lens.shape[0] != batch:
        raise ValueError(
            f"seq_lens are {seq_lens.dtype} {tuple(seq_lens.shape)}; allowed: integer [{batch}]."
        )
