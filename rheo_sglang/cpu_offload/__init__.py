"""CPU offload: misses are attended on the CPU while the GPU attends the hits."""
