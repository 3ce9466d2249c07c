"""Rotary position embedding, plain or stretched by YaRN (arXiv 2309.00071), as Hugging Face computes it."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def frequencies(
  head_dim: int, theta: float, scaling: Mapping[str, Any] | None, max_positions: int
) -> tuple[Float[np.ndarray, "half"], float]:
  """(inverse frequencies, factor on cos and sin). `scaling` None is plain RoPE, otherwise YaRN's options."""
  inverse = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  if scaling is None:
    return inverse, 1.0
  original = scaling.get("original_max_position_embeddings") or max_positions
  factor = scaling.get("factor") or max_positions / original

  def dimension(rotations: float) -> float:
    """The dimension that turns `rotations` times within the original window."""
    return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

  low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
  if scaling.get("truncate", True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)
  inverse = inverse / factor * ramp + inverse * (1 - ramp)
  return inverse, attention_factor(scaling, factor)


def attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
  """YaRN's temperature on the attention scores, as a factor on cos and sin."""
  if scaling.get("attention_factor") is not None:
    return scaling["attention_factor"]
  scale = lambda m=1.0: 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0  # noqa: E731
  if scaling.get("mscale") and scaling.get("mscale_all_dim"):
    return scale(scaling["mscale"]) / scale(scaling["mscale_all_dim"])
  return scale()


def angles(
  positions: Int[Array, "*n"], inverse: Float[np.ndarray, "half"], factor: float
) -> tuple[Float[Array, "*n half"], Float[Array, "*n half"]]:
  """(cos, sin) of every position, float32."""
  phase = positions.astype(jnp.float32)[..., None] * jnp.asarray(inverse, jnp.float32)
  return jnp.cos(phase) * factor, jnp.sin(phase) * factor


def rotate(x: Float[Array, "n H D"], cos: Float[Array, "n half"], sin: Float[Array, "n half"]) -> Float[Array, "n H D"]:
  """Turns the two halves of each head against each other (Hugging Face's layout), in float32."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, None], sin[:, None]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
