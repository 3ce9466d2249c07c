"""Statistics of a distribution from those of its parts: chunks of the vocabulary, or devices.

A part's share of the mass is w = exp(lse_part - lse), and H = sum of w (H_part - ln w): a sum of what is not negative,
which keeps its digits where the logits are large, as lse - sum(p z) does not. So that the shares keep theirs too, a
log-sum-exp is held as the highest logit and what is above it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NOTHING = -1e20  # the logit of a token that does not exist; finite, so that its weight of 0 makes no NaN


class Part(NamedTuple):
  """Of softmax(z / temperature) over a part's logits z."""

  highest: Float[Array, " T"]  # z, at most; no gradient is taken to it
  excess: Float[Array, " T"]  # log-sum-exp of (z - highest) / temperature
  entropy: Float[Array, " T"]


def merged(one: Part, other: Part, temperature: Float[Array, ""]) -> Part:
  """Two parts together."""
  highest = jnp.maximum(one.highest, other.highest)
  one, other = (_raised(part, highest, temperature) for part in (one, other))
  excess = jnp.logaddexp(one.excess, other.excess)
  return Part(highest, excess, _contribution(one, excess) + _contribution(other, excess))


def across(part: Part, temperature: Float[Array, ""], axis: str) -> Part:
  """The parts of all devices of the mesh axis together; differentiable."""
  highest = jax.lax.pmax(jax.lax.stop_gradient(part.highest), axis)
  part = _raised(part, highest, temperature)
  top = jax.lax.pmax(jax.lax.stop_gradient(part.excess), axis)
  excess = top + jnp.log(jax.lax.psum(jnp.exp(part.excess - top), axis))
  return Part(highest, excess, jax.lax.psum(_contribution(part, excess), axis))


def _raised(part: Part, highest: Float[Array, " T"], temperature: Float[Array, ""]) -> Part:
  return Part(highest, part.excess + (part.highest - highest) / temperature, part.entropy)


def _contribution(part: Part, excess: Float[Array, " T"]) -> Float[Array, " T"]:
  share = part.excess - excess
  return jnp.exp(share) * (part.entropy - share)
