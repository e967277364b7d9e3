"""The decode path on a GPU: kernels of fixed shapes, launched one by one or captured in CUDA graphs."""
