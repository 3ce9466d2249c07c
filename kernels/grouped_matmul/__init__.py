"""One matmul per group of consecutive rows: the experts' products over tokens sorted by expert.

Letters: M rows, E groups (experts), D in, F out.

On a TPU: `jax.lax.ragged_dot`, whose kernel visits the rows of the groups only, with tiles that we choose. Bound on the
MXU's use over the whole product (forward, gradient of the rows, of the weights) at 65,536 rows in 128 groups, 2048 to
768, every group beginning inside a block, by `benchmark.schedules` with libtpu 0.0.52; never compared with a chip:

  v5p  with our tiles 75% 74% 64%, with its own choice 45% 46% 57%; megablox (of jax) and tokamax with ours the same
  v5e  with our tiles 76% 75% 64%, with its own choice 45% 46% 59%
  v6e  with our tiles 54% 53% 48%, which are its own choice; megablox with them 54% 53% 33%

Forward and backward need under 1 MB beside operands and results (`benchmark.memories`); tokamax' "xla" 960 MB.

For v5e and v6e the compiler has that kernel too, but uses it only when compiled with `COMPILER_OPTIONS`: without, every
group's weights are multiplied with all rows. megablox needs no option, and refuses a shard_map that checks over which
axes its arrays vary.

Elsewhere "blocks": XLA's ragged_dot multiplies all rows with all groups there. On two busy cores of a CPU, 4,096 rows
of 64 to 64, forward and backward: 3 ms instead of 32 with 8 groups, 6 ms instead of 935 with 128.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.choice import choose
from qwenlong_jax.kernels.grouped_matmul import blocks, reference, xla
from qwenlong_jax.kernels.grouped_matmul.order import by_group, collect, spread

__all__ = ["COMPILER_OPTIONS", "by_group", "collect", "grouped_matmul", "spread"]

IMPLEMENTATIONS: dict[str, Callable] = {
  "reference": reference.grouped_matmul,
  "blocks": blocks.grouped_matmul,
  "xla": xla.grouped_matmul,
}
# With this the TPU compiler has a grouped kernel for every TPU; without, only from v5p on.
COMPILER_OPTIONS = {"xla_tpu_enable_ragged_dot_kernel": "true"}


def grouped_matmul(
  rows: Float[Array, "M D"],
  weights: Float[Array, "E D F"],
  sizes: Int[Array, " E"],
  *,
  implementation: str | None = None,
) -> Float[Array, "M F"]:
  """Row m of group e times weights[e]; `sizes` says how many consecutive rows each group has.

  Rows beyond the last group give 0 and get the gradient 0, whatever stands in them. Inside `shard_map` the operands
  must vary over the same mesh axes.

  Raises:
    ValueError: shapes or types disagree.
  """
  if rows.ndim != 2 or weights.ndim != 3 or rows.shape[1] != weights.shape[1] or sizes.shape != weights.shape[:1]:
    raise ValueError(f"{rows.shape=}, {weights.shape=}, {sizes.shape=}; wanted [M D], [E D F], [E]")
  if not weights.shape[0]:
    raise ValueError(f"{weights.shape=}; wanted [E D F] with at least one group")
  floating = rows.dtype == weights.dtype and jnp.issubdtype(rows.dtype, jnp.floating)
  if not floating or not jnp.issubdtype(sizes.dtype, jnp.integer):
    raise ValueError(
      f"{rows.dtype=}, {weights.dtype=}, {sizes.dtype=}; cast the first two to one floating type, sizes to int32"
    )
  run = choose(implementation, IMPLEMENTATIONS, {"default": "blocks", "tpu": "xla"})
  if 0 in (*rows.shape, weights.shape[2]):
    return rows @ weights[0]  # nothing, or sums of nothing, and differentiable
  return run(rows, weights, sizes.astype(jnp.int32))
