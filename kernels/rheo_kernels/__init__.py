"""Kernels of the decode and prefill paths: shared types, torch references, Triton, CUDA C++, C++ for CPUs."""
