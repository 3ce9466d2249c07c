"""Rows into the order of their groups and back, gathered both ways: no row is scattered, forward or backward.

Letters: T tokens, K groups of each, E groups, N = T * K assignments.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def by_group(group: Int[Array, " N"], count: int) -> tuple[Int[Array, " N"], Int[Array, " N"], Int[Array, " E"]]:
  """(assignment at each place, place of each assignment, assignments per group), stable.

  What is not in 0..count-1 belongs to no group and stands behind the last.
  """
  group = jnp.where((group >= 0) & (group < count), group, count)
  order = jnp.argsort(group)
  place = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype), unique_indices=True)
  return order, place, (group[:, None] == jnp.arange(count)).sum(0, dtype=jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def spread(
  x: Float[Array, "T ..."], order: Int[Array, " N"], place: Int[Array, " N"], chosen: int
) -> Float[Array, "N ..."]:
  """Each token's row at the places of its K = `chosen` assignments; the transpose of `collect`."""
  return x[order // chosen]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def collect(
  rows: Float[Array, "N ..."], order: Int[Array, " N"], place: Int[Array, " N"], chosen: int
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
