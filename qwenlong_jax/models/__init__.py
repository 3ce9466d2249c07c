"""Qwen3 (dense and MoE), its checkpoints and its tokenizers."""
