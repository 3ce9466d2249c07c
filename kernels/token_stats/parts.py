"""Statistics of a distribution from those of its parts: chunks of the vocabulary, or devices.

A part's share of the mass is w = exp(lse_part - lse), and H = sum of w (H_part - ln w): a sum of what is not negative,
which keeps its digits where the logits are large. lse - sum(p z) does not.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NOTHING = -1e30  # the logit of a token that does not exist; finite, so that its weight of 0 makes no NaN

Part = tuple[Float[Array, "T"], Float[Array, "T"]]  # log-sum-exp of the logits, entropy of their softmax


def merged(one: Part, other: Part) -> Part:
  """Two parts together."""
  lse = jnp.logaddexp(one[0], other[0])
  return lse, _contribution(one, lse) + _contribution(other, lse)


def across(part: Part, axis: str) -> Part:
  """The parts of all devices of the mesh axis together; differentiable."""
  highest = jax.lax.pmax(jax.lax.stop_gradient(part[0]), axis)
  lse = highest + jnp.log(jax.lax.psum(jnp.exp(part[0] - highest), axis))
  return lse, jax.lax.psum(_contribution(part, lse), axis)


def _contribution(part: Part, lse: Float[Array, "T"]) -> Float[Array, "T"]:
  share = part[0] - lse
  return jnp.exp(share) * (part[1] - share)
