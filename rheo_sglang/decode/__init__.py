"""Decode steps: the engine's interface, the reference engine and the GPU's, and what they are made of."""
