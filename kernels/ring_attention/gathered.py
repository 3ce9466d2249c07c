"""Every device gathers all keys and values: less latency than the ring where they are short, all of their memory."""

import functools
from types import ModuleType

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.flash_attention.blocks import Slots
from qwenlong_jax.kernels.flash_attention.operands import RESULTS
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
  """As `ring.attention`."""
  return _forward(q, k, v, segment, position, axis, local, block)[0]


def _forward(
  q: Array, k: Array, v: Array, segment: Array, position: Array, axis: str, local: ModuleType, block: int
) -> tuple[tuple[Array, Array], tuple]:
  everyone = [jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in (k, v, segment, position)]
  out, lse = local.forward(q, *everyone[:2], Slots(segment, position), Slots(*everyone[2:]), block=block)
  out, lse = checkpoint_name((out.astype(q.dtype), lse), RESULTS)
  return (out, lse), (q, k, v, segment, position, out, lse)


def _backward(axis: str, local: ModuleType, block: int, residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
  q, k, v, segment, position, out, lse = residuals
  gradient, lse_gradient = gradients
  delta = (gradient.astype(accumulator(q)) * out).sum(-1) - lse_gradient
  # Gathered again rather than kept: all keys of all layers would be the ring's memory times its size.
  everyone = [jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in (k, v, segment, position)]
  slots = Slots(segment, position), Slots(*everyone[2:])
  dq, *whole = local.backward(q, *everyone[:2], gradient, lse, delta, *slots, block=block)
  dk, dv = (jax.lax.psum_scatter(x, axis, scatter_dimension=1, tiled=True) for x in whole)
  return *(d.astype(x.dtype) for d, x in zip((dq, dk, dv), (q, k, v))), None, None


attention.defvjp(_forward, _backward)
