"""Keys and values go round the ring; the gradients of both follow them one step behind.

A step's permutes need nothing that the step computes, so that a device can compute while they travel. A device holds
two shards of keys and values beyond its own at most: the one it computes with and the one that arrives.
"""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.flash_attention.blocks import Slots
from qwenlong_jax.kernels.flash_attention.reference import NOTHING


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
  axis: str,
  local: ModuleType,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """(out, log-sum-exp) of this device's queries; `local` attends to one shard of keys (flash_attention's modules)."""
  return _forward(q, k, v, segment, position, axis, local)[0]


def _forward(
  q: Array, k: Array, v: Array, segment: Array, position: Array, axis: str, local: ModuleType
) -> tuple[tuple[Array, Array], tuple]:
  queries = Slots(segment, position)

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    out, lse, here = carry
    there = _next(here, axis)
    return (*_merge((out, lse), local.forward(q, *there[:2], queries, Slots(*there[2:]))), there), None

  own = (k, v, segment, position)
  first = (*local.forward(q, k, v, queries, queries), own)
  (out, lse, _), _ = jax.lax.scan(step, first, length=jax.lax.axis_size(axis) - 1)
  out = out.astype(q.dtype)
  return (out, lse), (q, k, v, segment, position, out, lse)


def _backward(axis: str, local: ModuleType, residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
  q, k, v, segment, position, out, lse = residuals
  queries, (gradient, lse_gradient) = Slots(segment, position), gradients
  delta = (gradient.astype(jnp.float32) * out).sum(-1) - lse_gradient

  def share(k: Array, v: Array, *keys: Array) -> tuple[Array, Array, Array]:
    return local.backward(q, k, v, gradient, lse, delta, queries, Slots(*keys))

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    dq, travelling, here = carry
    there, arrived = _next(here, axis), _next(travelling, axis)
    more, *theirs = share(*there)
    return (dq + more, tuple(x + y for x, y in zip(arrived, theirs)), there), None

  own = (k, v, segment, position)
  dq, *mine = share(*own)
  (dq, travelled, _), _ = jax.lax.scan(step, (dq, tuple(mine), own), length=jax.lax.axis_size(axis) - 1)
  found = (dq, *_next(travelled, axis))
  return *(d.astype(x.dtype) for d, x in zip(found, (q, k, v))), None, None


attention.defvjp(_forward, _backward)


def _next(shards: tuple[Array, ...], axis: str) -> tuple[Array, ...]:
  """What the device before this one holds."""
  ring = jax.lax.axis_size(axis)
  return jax.lax.ppermute(shards, axis, [(i, (i + 1) % ring) for i in range(ring)])


def _merge(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
  """(out, lse) over the keys of both."""
  (out_a, lse_a), (out_b, lse_b) = a, b
  lse = jnp.logaddexp(lse_a, lse_b)
  weigh = lambda out, one: out * jnp.exp(one - lse)[..., None]  # noqa: E731
  return weigh(out_a, lse_a) + weigh(out_b, lse_b), jnp.maximum(lse, NOTHING)
