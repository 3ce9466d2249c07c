"""One matmul per group of consecutive rows: the experts' products over tokens sorted by expert.

Letters: M rows, E groups (experts), D in, F out.
"""

from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.choice import choose
from qwenlong_jax.kernels.grouped_matmul import reference, xla

IMPLEMENTATIONS = {"reference": reference.grouped_matmul, "xla": xla.grouped_matmul}


def grouped_matmul(
  rows: Float[Array, "M D"],
  weights: Float[Array, "E D F"],
  sizes: Int[Array, "E"],
  *,
  implementation: str | None = None,
) -> Float[Array, "M F"]:
  """Row m of group e times weights[e]; `sizes` says how many consecutive rows each group has, M in all.

  Raises:
    ValueError: the shapes disagree.
  """
  if rows.ndim != 2 or weights.ndim != 3 or rows.shape[1] != weights.shape[1] or sizes.shape != weights.shape[:1]:
    raise ValueError(f"{rows.shape=}, {weights.shape=}, {sizes.shape=}; wanted [M D], [E D F], [E]")
  return choose(implementation, IMPLEMENTATIONS, {"default": "xla"})(rows, weights, sizes)
