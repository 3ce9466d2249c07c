"""Keys and values go round the ring; their gradients follow them one step behind, and home.

A step's permutes need nothing that the step computes and the other way round, so that a device computes while they
travel: with the keys that the step before received, and its share of their gradients is added to those of the devices
before it, which arrive meanwhile. A device holds two shards of keys and values beyond its own at most.
"""

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.flash_attention.blocks import Slots
from qwenlong_jax.kernels.flash_attention.operands import RESULTS
from qwenlong_jax.kernels.flash_attention.reference import NOTHING
from qwenlong_jax.kernels.neighbours import from_previous
from qwenlong_jax.kernels.precision import accumulator


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
  axis: str,
  local: ModuleType,
  block: int,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """(out, log-sum-exp) of this device's queries; `local` attends to one shard of keys (flash_attention's modules)."""
  return _forward(q, k, v, segment, position, axis, local, block)[0]


def _forward(
  q: Array, k: Array, v: Array, segment: Array, position: Array, axis: str, local: ModuleType, block: int
) -> tuple[tuple[Array, Array], tuple]:
  queries, everyone = Slots(segment, position), _everyone(segment, position, axis)

  def step(carry: tuple, number: Array) -> tuple[tuple, None]:
    *found, keys = carry
    there = from_previous(keys, axis)
    more = local.forward(q, *keys, queries, _passing(everyone, number, axis), block=block)
    return (*_merge(tuple(found), more), there), None

  nothing = jnp.zeros_like(q, accumulator(q)), jnp.full_like(q, NOTHING, accumulator(q), q.shape[:3])
  (out, lse, _), _ = jax.lax.scan(step, (*nothing, jnp.stack([k, v])), jnp.arange(jax.lax.axis_size(axis)))
  out, lse = checkpoint_name((out.astype(q.dtype), lse), RESULTS)
  return (out, lse), (q, k, v, segment, position, out, lse)


def _backward(axis: str, local: ModuleType, block: int, residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
  q, k, v, segment, position, out, lse = residuals
  gradient, lse_gradient = gradients
  delta = (gradient.astype(accumulator(q)) * out).sum(-1) - lse_gradient
  ring, everyone = jax.lax.axis_size(axis), _everyone(segment, position, axis)
  early = jnp.arange(q.shape[1]) < q.shape[1] // 2

  def step(carry: tuple, number: Array) -> tuple[tuple, None]:
    dq, travelling, keys = carry
    arrived, there = from_previous((travelling, keys), axis)
    # Own keys in the first step and in the last, with half of the queries each: so the first transfer of keys and the
    # last of gradients, home, also have something to travel beside.
    now = jnp.where(number == 0, early, jnp.where(number == ring, ~early, True))
    queries = Slots(jnp.where(now, segment, -1), position)
    more, *mine = local.backward(q, *keys, gradient, lse, delta, queries, _passing(everyone, number, axis), block=block)
    return (dq + more, arrived + jnp.stack(mine), there), None

  keys = jnp.stack([k, v])
  # A zero that waits for the gradient, or the sums lie ready from the layer's beginning.
  zero, gradient = jax.lax.optimization_barrier((jnp.zeros((), accumulator(q)), gradient))
  start = jnp.full_like(q, zero, accumulator(q)), jnp.full_like(keys, zero, accumulator(q)), keys
  (dq, (dk, dv), _), _ = jax.lax.scan(step, start, jnp.arange(ring + 1))
  return *(d.astype(x.dtype) for d, x in zip((dq, dk, dv), (q, k, v))), None, None


attention.defvjp(_forward, _backward)


def _everyone(segment: Array, position: Array, axis: str) -> Slots:
  """The slots of all devices [ring B L]: so few numbers that they are gathered once and need not travel."""
  return Slots(*(jax.lax.all_gather(x, axis) for x in (segment, position)))


def _passing(everyone: Slots, number: Array | int, axis: str) -> Slots:
  """Those of the keys that are here in step `number`: the device's that stands so many places before this one."""
  source = (jax.lax.axis_index(axis) - number) % jax.lax.axis_size(axis)
  return Slots(*(jax.lax.dynamic_index_in_dim(x, source, keepdims=False) for x in everyone))


def _merge(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
  """(out, lse) over the keys of both."""
  (out_a, lse_a), (out_b, lse_b) = a, b
  lse = jnp.logaddexp(lse_a, lse_b)
  weigh = lambda out, one: out * jnp.exp(one - lse)[..., None]  # noqa: E731
  return weigh(out_a, lse_a) + weigh(out_b, lse_b), jnp.maximum(lse, NOTHING)
