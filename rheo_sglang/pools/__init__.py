"""The memory of RheoServe: host pages in DRAM, frames in HBM, and SGLang's names for them."""
