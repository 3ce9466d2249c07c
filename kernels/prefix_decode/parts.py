"""What a branch reads has three parts: prefix, suffix, itself. Attended apart, they are combined by log-sum-exps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.precision import accumulator

NOTHING = -1e30  # log-sum-exp of no slot at all: finite, so that no difference is NaN


def combined(
  attend: Callable,
  q: Float[Array, "P G H D"],
  k: Float[Array, "P G K D"],
  v: Float[Array, "P G K D"],
  prefix: tuple[Float[Array, "N P K S D"], Float[Array, "N P K S D"]],
  prefix_length: Int[Array, " P"],
  suffix: tuple[Float[Array, "N P G K R D"], Float[Array, "N P G K R D"]],
  suffix_length: Int[Array, "P G"],
  layer: Int[Array, ""],
  axis: str | None,
) -> tuple[Float[Array, "P G H D"], Float[Array, "P G H"]]:
  """(out, log-sum-exp).

  Args:
    attend: (rows [B K M D], cache of two [N B K S D], length [B], layer) -> (out [B K M D], log-sum-exp [B K M]), both
      in the accumulator's type; of an empty row 0 and NOTHING. M rows read the same slots, each slot once.
  """
  p, g, h, d = q.shape
  heads = k.shape[2]
  n = h // heads  # query heads of a key-value head
  rows = q.reshape(p, g, heads, n, d)

  tall = jnp.moveaxis(rows, 1, 2).reshape(p, heads, g * n, d)
  short = rows.reshape(p * g, heads, n, d)
  branches = tuple(x.reshape(len(x), p * g, *x.shape[3:]) for x in suffix)
  of_prefix = attend(tall, prefix, prefix_length, layer)
  of_suffix = attend(short, branches, suffix_length.ravel(), layer)
  of_prefix = [jnp.moveaxis(x.reshape(p, heads, g, n, -1), 2, 1) for x in of_prefix]
  of_suffix = [x.reshape(p, g, heads, n, -1) for x in of_suffix]
  high = accumulator(k)
  of_self = (rows.astype(high) * k[:, :, :, None].astype(high)).sum(-1, keepdims=True) * d**-0.5

  top = jnp.maximum(of_prefix[1], of_suffix[1])
  top = jnp.maximum(of_self, top if axis is None else jax.lax.pmax(top, axis))  # finite: a token sees itself
  weights = [jnp.exp(lse - top) for _, lse in (of_prefix, of_suffix)]
  total = weights[0] * of_prefix[0] + weights[1] * of_suffix[0], weights[0] + weights[1]
  if axis is not None:
    total = jax.lax.psum(total, axis)
  own = jnp.exp(of_self - top)
  mass = total[1] + own
  out = (total[0] + own * v[:, :, :, None]) / mass
  return out.reshape(p, g, h, d).astype(v.dtype), (top + jnp.log(mass)).reshape(p, g, h)
