"""Batched matrix products: all rows that read the same slots are one tall matrix.

XLA copies the layer out of the stacked cache where the product takes no slice (on CPU always), once per step, and reads
every slot, whatever the lengths.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.precision import accumulator
from qwenlong_jax.kernels.prefix_decode.parts import NOTHING, combined


def attend(
  q: Float[Array, "B K M D"],
  cache: tuple[Float[Array, "N B K S D"], Float[Array, "N B K S D"]],
  length: Int[Array, " B"],
  layer: Int[Array, ""],
) -> tuple[Float[Array, "B K M D"], Float[Array, "B K M"]]:
  """(out, log-sum-exp), as `parts.combined` wants them."""
  b, heads, m, d = q.shape
  k, v = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in cache)
  s, high = k.shape[2], accumulator(k)
  seen = jnp.arange(s) < length[:, None, None, None]
  scores = jnp.matmul(q.reshape(b * heads, m, d), k.reshape(b * heads, s, d).mT, preferred_element_type=high)
  scores = jnp.where(seen, scores.reshape(b, heads, m, s) * d**-0.5, NOTHING)
  top = scores.max(-1, keepdims=True)
  weights = jnp.where(seen, jnp.exp(scores - top), 0)
  mass = weights.sum(-1, keepdims=True)
  v = jnp.where(seen.mT, v, 0)  # 0 times what stands past the length need not be 0
  out = jnp.matmul(
    weights.reshape(b * heads, m, s).astype(v.dtype), v.reshape(b * heads, s, d), preferred_element_type=high
  )
  some = jnp.maximum(mass, 1)  # the greatest weight is 1; 0 where no slot is seen
  return out.reshape(q.shape) / some, (top + jnp.log(some))[..., 0]


prefix_decode = functools.partial(combined, attend)
