"""Sampling responses: prefill once, decode a group."""
