"""Block after block of queries, scores recomputed in the backward pass: for CPU and GPU, and wherever Pallas does not run."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.flash_attention.reference import NEGATIVE, visible

BLOCK = 512  # queries whose scores exist at a time


def attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
) -> Float[Array, "B L H D"]:
  """Memory O(L * BLOCK). The heads of one key-value head are one tall matrix, so that every product is batched 3-D."""
  b, l, h, d = q.shape
  kv = k.shape[2]
  rows = jnp.moveaxis((q * d**-0.5).reshape(b, l, kv, h // kv, d), 1, 3)  # [B K rep L D]
  keys, values = (jnp.moveaxis(x, 1, 2).reshape(b * kv, l, d) for x in (k, v))

  def block(rows: Array, segment_q: Array, position_q: Array) -> Array:
    size = rows.shape[3]
    mask = visible(segment_q, position_q, segment, position)  # [B q L]
    scores = jnp.matmul(
      rows.reshape(b * kv, -1, d), keys.mT, preferred_element_type=jnp.float32
    ).reshape(b, kv, h // kv, size, l)
    scores = jnp.where(mask[:, None, None], scores, NEGATIVE)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    # A row that sees nothing has scores all NEGATIVE, hence weights all 1: `seen` takes it to 0.
    seen = mask.any(-1)[:, None, None, :, None]
    weights = (weights * (seen / weights.sum(-1, keepdims=True))).astype(v.dtype)
    return jnp.matmul(weights.reshape(b * kv, -1, l), values).reshape(rows.shape)

  if l <= BLOCK:
    out = block(rows, segment, position)
  else:
    pad = -l % BLOCK
    cut = lambda x, axis, value: jnp.moveaxis(  # noqa: E731
      jnp.pad(x, [(0, pad if i == axis else 0) for i in range(x.ndim)], constant_values=value).reshape(
        *x.shape[:axis], -1, BLOCK, *x.shape[axis + 1 :]
      ),
      axis,
      0,
    )
    blocks = (cut(rows, 3, 0), cut(segment, 1, -1), cut(position, 1, 0))
    out = jax.lax.map(lambda args: jax.checkpoint(block)(*args), blocks)  # [n B K rep BLOCK D]
    out = jnp.moveaxis(out, 0, 3).reshape(b, kv, h // kv, l + pad, d)[:, :, :, :l]
  return jnp.moveaxis(out, 3, 1).reshape(b, l, h, d).astype(q.dtype)
