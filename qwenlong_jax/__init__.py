"""Long-context reasoning by reinforcement learning: the QwenLong-L1.5 recipe in JAX."""
