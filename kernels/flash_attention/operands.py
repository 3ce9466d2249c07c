"""What both doors to attention demand of their operands."""

import jax.numpy as jnp
from jaxtyping import Array

from qwenlong_jax.kernels.flash_attention.blocks import Slots

# `jax.ad_checkpoint` name of the output and the log-sum-exp: a remat policy that keeps them saves the forward kernel.
RESULTS = "attention_results"


def checked(q: Array, k: Array, v: Array, segment: Array, position: Array) -> Slots:
  """The slots, in int32.

  Raises:
    ValueError: shapes or types disagree, or are not what attention takes.
  """
  if q.ndim != 4 or k.ndim != 4:
    raise ValueError(f"{q.shape=}, {k.shape=}; wanted [B L H D], [B L K D]")
  if 0 in q.shape or 0 in k.shape:
    raise ValueError(f"nothing to attend with: {q.shape=}, {k.shape=}; every size must be at least 1")
  if q.shape[2] % k.shape[2]:
    raise ValueError(f"{q.shape[2]} query heads must be a multiple of {k.shape[2]} key-value heads")
  if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
    raise ValueError(f"shapes disagree: {q.shape=}, {k.shape=}, {v.shape=}; wanted [B L H D], [B L K D], [B L K D]")
  if segment.shape != q.shape[:2] or position.shape != q.shape[:2]:
    raise ValueError(f"{segment.shape=} and {position.shape=} must be {q.shape[:2]}, one per slot")
  if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(q.dtype, jnp.floating):
    raise ValueError(f"types disagree: {q.dtype=}, {k.dtype=}, {v.dtype=}; cast them to one floating type")
  if not all(jnp.issubdtype(x.dtype, jnp.signedinteger) for x in (segment, position)):
    raise ValueError(f"{segment.dtype=} and {position.dtype=} must be signed integers; padding is segment -1")
  return Slots(segment.astype(jnp.int32), position.astype(jnp.int32))
