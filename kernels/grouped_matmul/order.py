"""Rows into the order of their groups and back, without a sort and without a scatter of rows.

Letters: T tokens, K groups of each, E groups, N = T * K assignments.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 1024  # assignments whose one-hot vectors exist at a time


def by_group(group: Int[Array, "N"], count: int) -> tuple[Int[Array, "N"], Int[Array, "N"], Int[Array, "E"]]:
  """(assignment at each place, place of each assignment, assignments per group): stable, by counting.

  What is not in 0..count-1 belongs to no group and stands behind the last. An argsort compiles for minutes on TPU.
  """
  group = jnp.where((group >= 0) & (group < count), group, count)
  size = min(BLOCK, group.shape[0])
  blocks = jnp.pad(group, (0, -group.shape[0] % size), constant_values=count + 1).reshape(-1, size)

  def step(before: Array, block: Array) -> tuple[Array, Array]:
    one_hot = (block[:, None] == jnp.arange(count + 1)).astype(jnp.int32)
    through = before + jnp.cumsum(one_hot, axis=0)
    return through[-1], (one_hot * through).sum(1) - 1

  nothing = jnp.zeros_like(group, shape=count + 1)
  if blocks.shape[0] == 1:
    sizes, rank = step(nothing, blocks[0])
  else:
    sizes, rank = jax.lax.scan(step, nothing, blocks)
  place = (jnp.cumsum(sizes) - sizes)[group] + rank.reshape(-1)[: group.shape[0]]
  order = jnp.zeros_like(place).at[place].set(jnp.arange(place.shape[0], dtype=place.dtype), unique_indices=True)
  return order, place, sizes[:count]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def spread(
  x: Float[Array, "T ..."], order: Int[Array, "N"], place: Int[Array, "N"], chosen: int
) -> Float[Array, "N ..."]:
  """Each token's row at the places of its K = `chosen` assignments; the transpose of `collect`."""
  return x[order // chosen]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def collect(
  rows: Float[Array, "N ..."], order: Int[Array, "N"], place: Int[Array, "N"], chosen: int
) -> Float[Array, "T ..."]:
  """The sum of each token's K = `chosen` rows; the transpose of `spread`."""
  return rows[place].reshape(-1, chosen, *rows.shape[1:]).sum(1)


# Told to the compiler, which would transpose a gather to a scatter.
spread.defvjp(
  lambda x, order, place, chosen: (spread(x, order, place, chosen), (order, place)),
  lambda chosen, kept, gradient: (collect(gradient, *kept, chosen), None, None),
)
collect.defvjp(
  lambda rows, order, place, chosen: (collect(rows, order, place, chosen), (order, place)),
  lambda chosen, kept, gradient: (spread(gradient, *kept, chosen), None, None),
)
