"""Rotary position embedding, plain or stretched by YaRN (arXiv 2309.00071), as Hugging Face computes it."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.precision import accumulator
from qwenlong_jax.models.presets import Yarn


def frequencies(head_dim: int, theta: float, yarn: Yarn | None) -> tuple[Float[np.ndarray, " half"], float]:
  """(inverse frequencies, factor on cos and sin); None is plain RoPE."""
  inverse = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  if yarn is None:
    return inverse, 1.0

  def dimension(rotations: float) -> float:
    """The dimension that turns `rotations` times within the original window."""
    window = yarn.original_max_position_embeddings
    return head_dim * math.log(window / (rotations * 2 * math.pi)) / (2 * math.log(theta))

  low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
  if yarn.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)
  return inverse / yarn.factor * ramp + inverse * (1 - ramp), yarn.scale


def angles(
  positions: Int[Array, "*n"], inverse: Float[np.ndarray, " half"], factor: float
) -> tuple[Float[Array, "*n half"], Float[Array, "*n half"]]:
  """(cos, sin) of every position, float32."""
  phase = positions.astype(jnp.float32)[..., None] * jnp.asarray(inverse, jnp.float32)
  return jnp.cos(phase) * factor, jnp.sin(phase) * factor


def rotate(x: Float[Array, "n H D"], cos: Float[Array, "n half"], sin: Float[Array, "n half"]) -> Float[Array, "n H D"]:
  """Turns the two halves of each head against each other (Hugging Face's layout), in float32."""
  first, second = jnp.split(x.astype(accumulator(x)), 2, axis=-1)
  cos, sin = cos[:, None], sin[:, None]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
