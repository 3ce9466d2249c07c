"""In what precision sums and softmaxes are taken."""

import jax.numpy as jnp
from jaxtyping import Array


def accumulator(x: Array) -> jnp.dtype:
  """float32; float64 for what is float64 already, so that two programs can be compared but for rounding."""
  return jnp.promote_types(x.dtype, jnp.float32)
