"""XLA's grouped product, forward and both gradients, on a TPU with tiles that we choose.

The TPU's kernel takes a block of rows at a time, once for each group that has rows in it, with a group's whole weights
or an even cut of them. It computes whole blocks, so that a cut which doesn't divide the weights computes columns that
are none: XLA's own choice for v5 takes 640 of 768 columns, and then 640 again.
"""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels import chip

# Bytes for a step's blocks, by the MXU's columns: below the 16 MiB that v5 gives a kernel, and the 32 of v6e.
VMEM = {128: 12 * 2**20, 256: 24 * 2**20}
CLEARED = 1024  # rows at a time beyond the last group


@jax.custom_vjp
def grouped_matmul(
  rows: Float[Array, "M D"], weights: Float[Array, "E D F"], sizes: Int[Array, " E"]
) -> Float[Array, "M F"]:
  """`jax.lax.ragged_dot`, which on a TPU leaves what is beyond the last group unwritten: here it is 0."""
  return _within(_rows_product(rows, weights, sizes, contracted=1), sizes)


def _forward(rows: Array, weights: Array, sizes: Array) -> tuple[Array, tuple]:
  return grouped_matmul(rows, weights, sizes), (rows, weights, sizes)


def _backward(residuals: tuple, gradient: Array) -> tuple[Array, Array, None]:
  rows, weights, sizes = residuals
  return (
    _within(_rows_product(gradient, weights, sizes, contracted=2), sizes),
    _weights_product(rows, gradient, sizes).astype(weights.dtype),
    None,
  )


grouped_matmul.defvjp(_forward, _backward)


def _within(x: Array, sizes: Array) -> Array:
  """0 beyond the last group, in place: without rows there it costs nothing, where a `where` copies all."""
  inside, block = sizes.sum(), min(CLEARED, x.shape[0])

  def clear(i: Array, x: Array) -> Array:
    start = jnp.minimum(i * block, x.shape[0] - block)
    old, at = jax.lax.dynamic_slice_in_dim(x, start, block), start + jnp.arange(block)[:, None]
    return jax.lax.dynamic_update_slice_in_dim(x, jnp.where(at < inside, old, 0), start, 0)

  return jax.lax.fori_loop(inside // block, -(-x.shape[0] // block), clear, x)


def _rows_product(rows: Array, weights: Array, sizes: Array, *, contracted: int) -> Array:
  """Each row with its group's weights, over their dimension `contracted`."""
  inner, outer = weights.shape[contracted], weights.shape[3 - contracted]
  row = _row_block()
  cost = lambda columns: 2 * rows.dtype.itemsize * (row * inner + inner * columns + row * columns)  # noqa: E731
  with _tiles(row, inner, outer, cost):
    out = jax.lax.ragged_dot_general(
      _whole_blocks(rows),
      weights,
      sizes,
      jax.lax.RaggedDotDimensionNumbers((((1,), (contracted,)), ((), ())), (0,), (0,)),
      preferred_element_type=rows.dtype,
    )
  return out[: rows.shape[0]]


def _weights_product(rows: Array, gradient: Array, sizes: Array) -> Array:
  """Each group's rows, transposed, with its rows of `gradient`."""
  inner, outer, row = rows.shape[1], gradient.shape[1], _row_block()
  size = rows.dtype.itemsize
  cost = lambda columns: inner * columns * (4 + 2 * size) + 2 * size * row * (inner + columns)  # noqa: E731
  with _tiles(row, inner, outer, cost):
    return jax.lax.ragged_dot_general(
      _whole_blocks(rows),
      _whole_blocks(gradient),
      sizes,
      jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ()),
      preferred_element_type=rows.dtype,
    )


def _whole_blocks(x: Array) -> Array:
  """Rows up to a multiple of a block: otherwise the TPU's compiler takes blocks as small as 8 rows, or no kernel."""
  return jnp.pad(x, ((0, -x.shape[0] % _row_block()), (0, 0)))


def _row_block() -> int:
  """Rows that a TPU's kernel takes at a time, as many as its MXU has columns; elsewhere no block is made whole."""
  info = chip.tpu()
  return info.mxu_column_size if info else 1


def _tiles(row: int, inner: int, outer: int, cost: Callable[[int], int]) -> contextlib.AbstractContextManager:
  """Tells the TPU's compiler to take `row` rows at a time and the widest even cut of `outer` whose `cost` fits VMEM.

  Nothing is told where no TPU is, or no cut fits: then the compiler chooses.
  """
  if chip.tpu() is None:
    return contextlib.nullcontext()
  cuts = [outer // n for n in range(1, outer + 1) if not outer % n and (n == 1 or not outer // n % 128)]
  fitting = [columns for columns in cuts if cost(columns) <= VMEM[row]]
  return set_xla_metadata(ragged_dot_tiling=f"{row},{inner},{fitting[0]}") if fitting else contextlib.nullcontext()
