"""Held-out measurements and their confidence intervals."""
