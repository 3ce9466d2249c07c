"""BM25, by bm25s without JAX: with JAX in sight it asks for the devices as soon as it is imported, so that on a TPU
host every worker would take the chips."""

import logging
import sys

_jax = sys.modules.get("jax")
sys.modules["jax"] = None  # type: ignore[assignment]
try:
  from bm25s import BM25, tokenize
finally:
  if _jax is None:
    del sys.modules["jax"]
  else:
    sys.modules["jax"] = _jax

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index, among the bars of a synthesis

__all__ = ["BM25", "tokenize"]
