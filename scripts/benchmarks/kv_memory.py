"""kv_memory: HBM that a server's pools take, and what a long prefill takes against the bound that was promised."""

from __future__ import annotations

from rheo_sglang.pools.plan import GIB, KVShape


def pool_sizes(shape: KVShape, counters: dict[str, int], context: int, summary: str) -> dict[str, float]:
    """GiB that a server's pools take, and its bound for staging prefixes.

    Parameters
    ----------
    shape
        What one page holds.
    counters
        The server's: ``pages_total``, and ``frames_total`` over all layers and KV heads.
    context
        Most tokens of a request.
    summary
        Kind of page summary.
    """
    frames = counters["frames_total"] // (shape.layers * shape.kv_heads)
    pages = counters["pages_total"] + 1
    sizes = {
        "frames_gib": frames * shape.page_bytes,
        "page_table_and_summaries_gib": pages * shape.table_bytes(summary),
        "staging_bound_gib": shape.staging_bytes(context),
        "host_pool_gib": pages * shape.page_bytes,
    }
    return {name: size / GIB for name, size in sizes.items()}


def memory_figures(pools: dict[str, float], before: int, one_chunk: int, peak: int) -> dict[str, float]:
    """What a long prefill took, and what was promised; all in GiB.

    What a prompt of one chunk takes is activations, for it has no prefix to be staged; what a long prompt takes beyond
    is counted as KV, in addition to the pools.

    Parameters
    ----------
    pools
        See `pool_sizes`.
    before, one_chunk, peak
        Bytes of device memory in use before any prompt, at most during one of a single chunk, and at most during the
        long one.
    """
    resident = pools["frames_gib"] + pools["page_table_and_summaries_gib"]
    beyond = max(peak - one_chunk, 0) / GIB
    return {
        "device_before_gib": before / GIB,
        "device_one_chunk_gib": one_chunk / GIB,
        "device_peak_gib": peak / GIB,
        "taken_by_prefill_gib": (peak - before) / GIB,
        "taken_beyond_one_chunk_gib": beyond,
        "peak_kv_hbm_gib": resident + beyond,
        "promised_kv_hbm_gib": resident + pools["staging_bound_gib"],
    }
