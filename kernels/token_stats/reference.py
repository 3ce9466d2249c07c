"""The plain form: all logits at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_stats(
  hidden: Float[Array, "T D"], head: Float[Array, "D V"], target: Int[Array, "T"], temperature: float = 1.0
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
  """[T V] floats; for tests."""
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  logprobs = jax.nn.log_softmax((hidden.astype(dtype) @ head.astype(dtype)) / temperature)
  return jnp.take_along_axis(logprobs, target[:, None], 1)[:, 0], -(jnp.exp(logprobs) * logprobs).sum(1)
