"""One decode step of G branches over one shared prefix: the prefix keys and values are read once for all branches.

Letters: P prompts, G branches of each, H query heads, K key-value heads, D head dimension, S prefix and R suffix slots.
"""

from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.choice import choose
from qwenlong_jax.kernels.prefix_decode import reference, xla

IMPLEMENTATIONS = {"reference": reference.prefix_decode, "xla": xla.prefix_decode}


def prefix_decode(
  q: Float[Array, "P G H D"],
  k: Float[Array, "P G K D"],
  v: Float[Array, "P G K D"],
  prefix: tuple[Float[Array, "P K S D"], Float[Array, "P K S D"]],
  prefix_length: Int[Array, "P"],
  suffix: tuple[Float[Array, "P G K R D"], Float[Array, "P G K R D"]],
  suffix_length: Int[Array, "P G"],
  *,
  implementation: str | None = None,
) -> Float[Array, "P G H D"]:
  """Attention of each branch's new token (q, k, v) to its prefix, its own suffix, and itself.

  The new k and v are not written: the caller writes all layers' at once, so that the cache is never copied.

  Raises:
    ValueError: the shapes disagree.
  """
  p, g, h, _ = q.shape
  if h % k.shape[2] or k.shape != v.shape or k.shape[:2] != (p, g):
    raise ValueError(f"{q.shape=}, {k.shape=}, {v.shape=}; wanted [P G H D], [P G K D], [P G K D] with K dividing H")
  if prefix[0].shape[:2] != (p, k.shape[2]) or suffix[0].shape[:3] != k.shape[:3]:
    raise ValueError(
      f"prefix {prefix[0].shape}, suffix {suffix[0].shape}; wanted [P K S D], [P G K R D] for {k.shape=}"
    )
  run = choose(implementation, IMPLEMENTATIONS, {"default": "xla"})
  return run(q, k, v, prefix, prefix_length, suffix, suffix_length)
