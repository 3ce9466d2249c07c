"""The plain form: all logits at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.precision import accumulator
from qwenlong_jax.kernels.token_stats.parts import NOTHING, Part


def columns(
  hidden: Float[Array, "T D"],
  head: Float[Array, "D V"],
  target: Int[Array, " T"],
  temperature: Float[Array, ""],
  limit: Int[Array, ""] | None,
) -> tuple[Float[Array, " T"], Part]:
  """(the target's logit before the temperature, or 0 if it is none of these columns; statistics of all columns before
  `limit`).

  [T V] floats; for tests.
  """
  column = jnp.arange(head.shape[1])
  exists = column < (head.shape[1] if limit is None else limit)
  dtype = accumulator(hidden)
  z = hidden.astype(dtype) @ jnp.where(exists, head, 0).astype(dtype)
  z = jnp.where(exists, z, NOTHING)
  highest = jax.lax.stop_gradient(z.max(1))
  shifted = (z - highest[:, None]) / temperature
  logp = jax.nn.log_softmax(shifted)
  logit = jnp.where(column == target[:, None], z, 0).sum(1)
  return logit, Part(highest, jax.nn.logsumexp(shifted, axis=1), -(jnp.exp(logp) * logp).sum(1))
