"""Stand-in for SGLang's compiled kernel package on machines without a GPU.

With `SGLANG_USE_CPU_ENGINE=1` SGLang imports kernels by name when its modules load, whether or not the
served model needs them. A dense text model without speculative decoding can reach one of them, which is
implemented here in torch. Every other name resolves to a function that raises `NotImplementedError`.
"""

import torch

__version__ = "0.0.0+cpu"


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write newly allocated KV slots into the rows of the request-to-token table.

    Parameters
    ----------
    req_pool_indices : int tensor [batch]
        Row of `req_to_token` that belongs to each request.
    req_to_token : int32 tensor [rows, pool_len]
        Table of KV slots, written in place.
    start_offset, end_offset : int tensor [batch]
        Half-open range of token positions each request receives slots for.
    out_cache_loc : int tensor [sum(end_offset - start_offset)]
        The slots, concatenated in batch order.
    pool_len : int
        Row length of `req_to_token`; part of the compiled kernel's signature.
    """
    counts = (end_offset - start_offset).long()
    rows = torch.repeat_interleave(req_pool_indices.long(), counts)
    first_of_request = torch.cumsum(counts, 0) - counts
    shift = torch.repeat_interleave(start_offset.long() - first_of_request, counts)
    columns = torch.arange(rows.numel(), device=rows.device) + shift
    req_to_token[rows, columns] = out_cache_loc[: rows.numel()].to(req_to_token.dtype)


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)

    def unavailable(*args, **kwargs):
        raise NotImplementedError(
            f"sgl_kernel.{name} is a compiled kernel; this CPU environment does not have it."
        )

    unavailable.__name__ = name
    return unavailable
