"""Benchmarks of speed and memory: kernels, time per output token, time to first token, long contexts."""
