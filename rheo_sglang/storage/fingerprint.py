"""What a stored page depends on beside its tokens, as a part of its key."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.storage.record import VERSION

SAMPLED = 64
"""Elements of every parameter that stand for the model's weights."""
NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""What a model's configuration says that leaves its K and V as they are, or that the weights say themselves."""


def fingerprint(pool: RheoKVPool, model: torch.nn.Module, config: Any) -> str:
    """Digest of all that makes a page of one server wrong in another.

    Parameters
    ----------
    pool
        Shape, dtype with its scales, and page size, and the kind and layout of page summaries.
    model
        The loaded model, for its weights: about `SAMPLED` evenly spaced elements of every parameter, so that neither a
        path nor a name has to be trusted.
    config
        The model's configuration (Hugging Face's), with what the command line overrides: rotary scaling for example.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    table = pool.table
    stated = {
        "record": VERSION,
        "layers": [pool.start_layer, pool.layer_num],
        "kv_heads": pool.head_num,
        "head_dim": pool.head_dim,
        "dtype": str(pool.dtype),
        "page_size": pool.page_size,
        "summary": [table.summary.name, list(table.summaries.shape[3:]), str(table.summaries.dtype)],
        "model": {key: value for key, value in config.to_dict().items() if key not in NOT_OF_THE_MODEL},
    }
    if pool.dtype == EIGHT_BITS:
        stated["scales"] = [list(scales) for scales in pool.scales]
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True, default=str).encode())
    digest.update(weights_digest(model))
    return digest.hexdigest()


def weights_digest(model: torch.nn.Module) -> bytes:
    """SHA-256 digest of the names, shapes, dtypes and sampled elements of a model's parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters(), key=lambda named: named[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        flat = tensor.detach().flatten()
        sample = flat[:: max(flat.numel() // SAMPLED, 1)].contiguous()
        digest.update(sample.view(torch.uint8).cpu().numpy().tobytes())
    return digest.digest()


def namespace(fingerprint: str, extra_key: str | None, cache_salt: str | None) -> str:
    """What sets apart the keys of a server, and of requests that SGLang keeps apart: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps([fingerprint, extra_key, cache_salt]).encode()).hexdigest()[:16]
