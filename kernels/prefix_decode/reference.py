"""The plain form: the prefix repeated for every branch, one softmax over [prefix, suffix, self]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def prefix_decode(
  q: Float[Array, "P G H D"],
  k: Float[Array, "P G K D"],
  v: Float[Array, "P G K D"],
  prefix: tuple[Float[Array, "P K S D"], Float[Array, "P K S D"]],
  prefix_length: Int[Array, "P"],
  suffix: tuple[Float[Array, "P G K R D"], Float[Array, "P G K R D"]],
  suffix_length: Int[Array, "P G"],
) -> Float[Array, "P G H D"]:
  """O(G * S) memory; for tests."""
  g, repeats = q.shape[1], q.shape[2] // k.shape[2]
  whole = [
    jnp.repeat(jnp.concatenate([jnp.repeat(before[:, None], g, 1), after, new[:, :, :, None]], axis=3), repeats, axis=2)
    for before, after, new in zip(prefix, suffix, (k, v))
  ]  # [P G H S+R+1 D]
  s, r = prefix[0].shape[2], suffix[0].shape[3]
  seen = jnp.concatenate(
    [
      jnp.broadcast_to(jnp.arange(s) < prefix_length[:, None, None], (*q.shape[:2], s)),
      jnp.arange(r) < suffix_length[:, :, None],
      jnp.ones((*q.shape[:2], 1), bool),
    ],
    axis=2,
  )
  scores = jnp.einsum("pghd,pghnd->pghn", q, whole[0]) * q.shape[-1] ** -0.5
  weights = jax.nn.softmax(jnp.where(seen[:, :, None], scores, -jnp.inf), axis=-1)
  return jnp.einsum("pghn,pghnd->pghd", weights, whole[1])
