"""In what precision products, sums and softmaxes are taken."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def accumulator(x: Array) -> jnp.dtype:
  """float32; float64 for what is float64 already, so that two programs can be compared but for rounding."""
  return jnp.promote_types(x.dtype, jnp.float32)


def of_products(x: Array) -> jax.lax.Precision:
  """That of a TPU kernel's products for operands of x's type. Never the context's: what a kernel makes of bfloat16 has
  one, and the chip's compiler refuses others."""
  return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def dot(x: Array, y: Array, over: tuple[int, int], precision: jax.lax.Precision) -> Array:
  """A kernel's product over axis over[0] of x and over[1] of y, in float32."""
  dimensions = (((over[0],), (over[1],)), ((), ()))
  return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)
