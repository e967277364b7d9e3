"""Split attention: misses are attended on the CPU while the GPU attends the hits."""
