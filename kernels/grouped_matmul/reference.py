"""The plain form: each row looks up its own weight matrix."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def grouped_matmul(
  rows: Float[Array, "M D"], weights: Float[Array, "E D F"], sizes: Int[Array, "E"]
) -> Float[Array, "M F"]:
  """O(M * D * F) memory; for tests."""
  group = jnp.repeat(jnp.arange(sizes.shape[0]), sizes, total_repeat_length=rows.shape[0])
  return jnp.einsum("md,mdf->mf", rows, weights[group])
