"""The plain form: the prefix repeated for every branch, one softmax over [prefix, suffix, self]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.precision import accumulator


def prefix_decode(
  q: Float[Array, "P G H D"],
  k: Float[Array, "P G K D"],
  v: Float[Array, "P G K D"],
  prefix: tuple[Float[Array, "N P K S D"], Float[Array, "N P K S D"]],
  prefix_length: Int[Array, " P"],
  suffix: tuple[Float[Array, "N P G K R D"], Float[Array, "N P G K R D"]],
  suffix_length: Int[Array, "P G"],
  layer: Int[Array, ""],
  axis: str | None,
) -> tuple[Float[Array, "P G H D"], Float[Array, "P G H"]]:
  """O(G * S) memory; for tests."""
  p, g, h, d = q.shape
  s, r = prefix[0].shape[3], suffix[0].shape[4]
  seen = jnp.concatenate(
    [
      jnp.broadcast_to(jnp.arange(s) < prefix_length[:, None, None], (p, g, s)),
      jnp.arange(r) < suffix_length[:, :, None],
    ],
    axis=2,
  )
  cached = [
    jnp.concatenate([jnp.repeat(before[layer][:, None], g, 1), after[layer]], axis=3)
    for before, after in zip(prefix, suffix)
  ]  # [P G K S+R D]
  if axis is not None:
    seen = jax.lax.all_gather(seen, axis, axis=2, tiled=True)
    cached = [jax.lax.all_gather(x, axis, axis=3, tiled=True) for x in cached]
  seen = jnp.concatenate([seen, jnp.ones((p, g, 1), bool)], axis=2)[:, :, None]
  keys, values = (
    jnp.repeat(jnp.concatenate([x, new[:, :, :, None]], axis=3), h // k.shape[2], axis=2).astype(accumulator(x))
    for x, new in zip(cached, (k, v))
  )
  scores = jnp.where(seen, jnp.einsum("pghd,pghnd->pghn", q.astype(keys.dtype), keys) * d**-0.5, -jnp.inf)
  lse = jax.nn.logsumexp(scores, axis=-1)
  values = jnp.where(seen[..., None], values, 0)
  return jnp.einsum("pghn,pghnd->pghd", jnp.exp(scores - lse[..., None]), values).astype(v.dtype), lse
