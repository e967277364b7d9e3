"""The tier under DRAM: pages of cached prefixes in one of SGLang's storage backends."""

from rheo_sglang.storage.tier import StorageTier, make_storage

__all__ = ["StorageTier", "make_storage"]
