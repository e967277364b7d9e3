"""Prefill: what a chunk of prompt tokens goes through, layer by layer."""

from rheo_sglang.prefill.batch import PrefillBatch, build_prefill_batch
from rheo_sglang.prefill.prefill import Prefill
from rheo_sglang.prefill.seed import SeedAdmission

__all__ = ["Prefill", "PrefillBatch", "SeedAdmission", "build_prefill_batch"]
