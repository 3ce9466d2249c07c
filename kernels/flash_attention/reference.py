"""The plain form: every score at once, in float32 (or float64, if it is given that)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NOTHING = -1e30  # log-sum-exp of a slot that sees nothing, and a hidden score: finite, so that no gradient is NaN


def visible(
  segment_q: Int[Array, "B Lq"],
  position_q: Int[Array, "B Lq"],
  segment_k: Int[Array, "B Lk"],
  position_k: Int[Array, "B Lk"],
) -> Bool[Array, "B Lq Lk"]:
  """Which key slots each query slot sees: the mask of the package's docstring."""
  sk, sq = segment_k[:, None, :], segment_q[:, :, None]
  real = (sk >= 0) & (sq >= 0)
  return real & ((sk == sq) | (sk == 0)) & (position_k[:, None, :] <= position_q[:, :, None])


def attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """O(L^2) memory; for tests."""
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  repeats = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(x.astype(dtype), repeats, axis=2) for x in (k, v))
  mask = visible(segment, position, segment, position)[:, None]
  scores = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q.astype(dtype), k) * q.shape[-1] ** -0.5, NOTHING)
  lse = jnp.where(mask.any(-1), jax.nn.logsumexp(scores, axis=-1), NOTHING)
  weights = jnp.where(mask, jnp.exp(scores - lse[..., None]), 0)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v).astype(q.dtype), jnp.moveaxis(lse, 1, 2)
