"""RheoServe: an SGLang plugin that keeps the whole KV cache in host DRAM and a working set in HBM."""

__version__ = "0.1.0"
