"""Three parts (prefix, suffix, self) under one maximum; the prefix product is one tall matmul for all branches."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.precision import accumulator

NEGATIVE = -1e30


def prefix_decode(
  q: Float[Array, "P G H D"],
  k: Float[Array, "P G K D"],
  v: Float[Array, "P G K D"],
  prefix: tuple[Float[Array, "P K S D"], Float[Array, "P K S D"]],
  prefix_length: Int[Array, "P"],
  suffix: tuple[Float[Array, "P G K R D"], Float[Array, "P G K R D"]],
  suffix_length: Int[Array, "P G"],
) -> Float[Array, "P G H D"]:
  """Reads each cached key and value once; accumulates in float32."""
  p, g, h, d = q.shape
  kv, s, r = k.shape[2], prefix[0].shape[2], suffix[0].shape[3]
  n = h // kv
  high = accumulator(k)
  q = (q * d**-0.5).reshape(p, g, kv, n, d)
  tall = jnp.moveaxis(q, 2, 1).reshape(p * kv, g * n, d)
  short = q.reshape(p * g * kv, n, d)

  score_p = jnp.matmul(tall, prefix[0].reshape(p * kv, s, d).mT, preferred_element_type=high)
  score_p = jnp.moveaxis(score_p.reshape(p, kv, g, n, s), 1, 2)
  score_p = jnp.where(jnp.arange(s) < prefix_length[:, None, None, None, None], score_p, NEGATIVE)
  score_r = jnp.matmul(short, suffix[0].reshape(p * g * kv, r, d).mT, preferred_element_type=high)
  score_r = score_r.reshape(p, g, kv, n, r)
  score_r = jnp.where(jnp.arange(r) < suffix_length[:, :, None, None, None], score_r, NEGATIVE)
  score_self = (q * k[:, :, :, None]).sum(-1, dtype=high)[..., None]  # [P G K n 1], never masked: the maximum is finite

  top = jnp.maximum(jnp.maximum(score_p.max(-1, keepdims=True), score_r.max(-1, keepdims=True)), score_self)
  w_p, w_r, w_self = (jnp.exp(x - top) for x in (score_p, score_r, score_self))
  total = w_p.sum(-1, keepdims=True) + w_r.sum(-1, keepdims=True) + w_self

  values_p = jnp.moveaxis(w_p, 2, 1).reshape(p * kv, g * n, s).astype(v.dtype)
  out_p = jnp.matmul(values_p, prefix[1].reshape(p * kv, s, d), preferred_element_type=high)
  out_p = jnp.moveaxis(out_p.reshape(p, kv, g, n, d), 1, 2)
  out_r = jnp.matmul(
    w_r.reshape(p * g * kv, n, r).astype(v.dtype), suffix[1].reshape(p * g * kv, r, d), preferred_element_type=high
  ).reshape(p, g, kv, n, d)
  out = (out_p + out_r + w_self * v[:, :, :, None]) / total
  return out.reshape(p, g, h, d).astype(v.dtype)
