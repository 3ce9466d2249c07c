"""Keys and values go round the ring; the gradients of both follow them one step behind.

A step's permutes need nothing that the step computes and the other way round, so that a device computes while they
travel: with the keys that the step before received, and its share of their gradients is added to those of the devices
before it, which arrive meanwhile. A device holds two shards of keys and values beyond its own at most.
"""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from qwenlong_jax.kernels.flash_attention.blocks import Slots
from qwenlong_jax.kernels.flash_attention.reference import NOTHING
from qwenlong_jax.kernels.precision import accumulator


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
    *found, (keys, slots) = carry
    there = _next((keys, slots), axis)
    more = local.forward(q, *keys, queries, Slots(*slots))
    return (*_merge(tuple(found), more), there), None

  nothing = jnp.zeros_like(q, accumulator(q)), jnp.full_like(q, NOTHING, accumulator(q), q.shape[:3])
  start = (*nothing, (jnp.stack([k, v]), jnp.stack(queries)))
  (out, lse, _), _ = jax.lax.scan(step, start, length=jax.lax.axis_size(axis))
  out = out.astype(q.dtype)
  return (out, lse), (q, k, v, segment, position, out, lse)


def _backward(axis: str, local: ModuleType, residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
  q, k, v, segment, position, out, lse = residuals
  queries, (gradient, lse_gradient) = Slots(segment, position), gradients
  delta = (gradient.astype(accumulator(q)) * out).sum(-1) - lse_gradient

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    dq, travelling, keys, slots = carry
    arrived, *there = _next((travelling, keys, slots), axis)
    more, *mine = local.backward(q, *keys, gradient, lse, delta, queries, Slots(*slots))
    return (dq + more, arrived + jnp.stack(mine), *there), None

  keys = jnp.stack([k, v])
  start = jnp.zeros_like(q, accumulator(q)), jnp.zeros_like(keys, accumulator(q)), keys, jnp.stack(queries)
  (dq, travelled, *_), _ = jax.lax.scan(step, start, length=jax.lax.axis_size(axis))
  dk, dv = _next(travelled, axis)
  return *(d.astype(x.dtype) for d, x in zip((dq, dk, dv), (q, k, v))), None, None


attention.defvjp(_forward, _backward)


def _next(shards: PyTree, axis: str) -> PyTree:
  """What the device before this one holds. Few arrays: the compiler hides so many permutes at a time and no more."""
  ring = jax.lax.axis_size(axis)
  return jax.lax.ppermute(shards, axis, [(i, (i + 1) % ring) for i in range(ring)])


def _merge(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
  """(out, lse) over the keys of both."""
  (out_a, lse_a), (out_b, lse_b) = a, b
  lse = jnp.logaddexp(lse_a, lse_b)
  weigh = lambda out, one: out * jnp.exp(one - lse)[..., None]  # noqa: E731
  return weigh(out_a, lse_a) + weigh(out_b, lse_b), jnp.maximum(lse, NOTHING)
