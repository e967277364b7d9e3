"""Prefill: what a chunk of prompt tokens goes through, layer by layer."""

from rheo_sglang.prefill.batch import PrefillBatch, build_prefill_batch
from rheo_sglang.prefill.prefill import Prefill

__all__ = ["Prefill", "PrefillBatch", "build_prefill_batch"]
