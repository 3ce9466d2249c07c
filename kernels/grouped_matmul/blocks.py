"""Block after block of rows, each with the weights of the groups that have rows in it: where no grouped kernel is.

There `jax.lax.ragged_dot` multiplies every row with every group's weights, and holds [E M D] while it does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.precision import accumulator

BLOCK = 64  # rows; a block in which n groups meet is computed n times


@jax.custom_vjp
def grouped_matmul(
  rows: Float[Array, "M D"], weights: Float[Array, "E D F"], sizes: Int[Array, " E"]
) -> Float[Array, "M F"]:
  """Arithmetic of M + E * BLOCK rows at most, no memory but the operands and the result."""
  return _rows_product(rows, weights, sizes)


def _forward(rows: Array, weights: Array, sizes: Array) -> tuple[Array, tuple]:
  return _rows_product(rows, weights, sizes), (rows, weights, sizes)


def _backward(residuals: tuple, gradient: Array) -> tuple[Array, Array, None]:
  rows, weights, sizes = residuals
  return _rows_product(gradient, weights.mT, sizes), _weights_product(rows, gradient, sizes, weights), None


grouped_matmul.defvjp(_forward, _backward)


def _rows_product(rows: Array, weights: Array, sizes: Array) -> Array:
  count, padded, (visits, visit) = rows.shape[0], _whole(rows), _visits(sizes)

  def step(i: Array, out: Array) -> Array:
    group, start, mine = visit(i)
    more = jax.lax.dynamic_slice_in_dim(padded, start, BLOCK) @ weights[group]
    old = jax.lax.dynamic_slice_in_dim(out, start, BLOCK)
    return jax.lax.dynamic_update_slice_in_dim(out, jnp.where(mine, more, old), start, 0)

  nothing = jnp.zeros_like(padded, shape=(padded.shape[0], weights.shape[2]))
  return jax.lax.fori_loop(0, visits, step, nothing)[:count]


def _weights_product(rows: Array, gradient: Array, sizes: Array, weights: Array) -> Array:
  rows, gradient, (visits, visit) = _whole(rows), _whole(gradient), _visits(sizes)

  def step(i: Array, total: Array) -> Array:
    group, start, mine = visit(i)
    # Both: what is beyond the last group may be anything.
    a, b = (jnp.where(mine, jax.lax.dynamic_slice_in_dim(x, start, BLOCK), 0) for x in (rows, gradient))
    return total.at[group].add(jnp.matmul(a.T, b, preferred_element_type=total.dtype))

  return jax.lax.fori_loop(0, visits, step, jnp.zeros_like(weights, accumulator(weights))).astype(weights.dtype)


def _whole(x: Array) -> Array:
  return jnp.pad(x, ((0, -x.shape[0] % BLOCK), (0, 0)))


def _visits(sizes: Array) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
  """(number of pairs of a block and a group with rows in it, pair -> (group, first row of the block, rows of both))."""
  ends = jnp.cumsum(sizes)
  first, last = (ends - sizes) // BLOCK, (ends - 1) // BLOCK
  through = jnp.cumsum(jnp.where(sizes > 0, last - first + 1, 0))

  def visit(i: Array) -> tuple[Array, Array, Array]:
    group = (through <= i).sum()
    start = (last[group] - (through[group] - 1 - i)) * BLOCK
    at = start + jnp.arange(BLOCK)[:, None]
    return group, start, (at >= ends[group] - sizes[group]) & (at < ends[group])

  return through[-1], visit
