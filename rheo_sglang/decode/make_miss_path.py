"""make_miss_path: where misses are attended, as far as device, shape and processor allow."""

from __future__ import annotations

import logging
from typing import Any

from rheo_sglang.decode.attention import Attention
from rheo_sglang.decode.cpu_miss_path import CpuMissPath
from rheo_sglang.decode.cuda_attention import CudaAttention
from rheo_sglang.decode.engine import EngineInputs
from rheo_sglang.decode.fetch_miss_path import FetchMissPath
from rheo_sglang.decode.gpu_residency import GpuResidency
from rheo_sglang.decode.hybrid_miss_path import HybridMissPath
from rheo_sglang.decode.miss_path import MissPath
from rheo_sglang.decode.triton_attention import TritonAttention

logger = logging.getLogger(__name__)


def make_miss_path(
    inputs: EngineInputs, residency: GpuResidency, attention: Attention[Any]
) -> MissPath[Any, Any]:
    """The path that `RheoConfig.miss_mode` asks for, or the nearest one that works here.

    ``auto`` fetches where every page has a frame anyway, and where attention runs in Triton on a GPU.
    """
    mode, on_gpu = inputs.config.miss_mode, inputs.frames.device.type == "cuda"
    all_fit = inputs.frames.shape[2] >= inputs.host.shape[1] - 1
    if not inputs.cpu_attention and mode == "split":
        logger.warning("rheo: miss_mode='split' needs CPU attention; misses are fetched (miss_mode='fetch')")
    if not inputs.cpu_attention or mode == "fetch" or (mode == "auto" and all_fit):
        return FetchMissPath(inputs, residency, attention)
    if isinstance(attention, CudaAttention):
        return HybridMissPath(inputs, residency, attention)
    if isinstance(attention, TritonAttention) and (mode == "split" or not on_gpu):
        return CpuMissPath(inputs, residency, attention)
    return FetchMissPath(inputs, residency, attention)
