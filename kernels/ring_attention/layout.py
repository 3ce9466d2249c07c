"""Which device of the ring holds which slots: blocks are dealt round, so that every device has early and late ones."""

import jax
import numpy as np
from jaxtyping import Shaped

BLOCK = 512  # slots; smaller blocks are no better balanced, larger ones leave more padding in the last round


def to_ring(x: Shaped[jax.Array, "B L ..."], ring: int, block: int = BLOCK) -> Shaped[jax.Array, "B L ..."]:
  """Slots in the order in which an even cut over `ring` devices gives device d the blocks d, d + ring, ...

  Tokens, segments and positions all go through here; then the mask, which knows positions only, stays what it was.

  Raises:
    ValueError: the length is not whole rounds of blocks, or `ring` or `block` is not a whole number from 1 on.
  """
  return _swap(x, ring, block, to=True)


def from_ring(x: Shaped[jax.Array, "B L ..."], ring: int, block: int = BLOCK) -> Shaped[jax.Array, "B L ..."]:
  """The inverse of `to_ring`."""
  return _swap(x, ring, block, to=False)


def _swap(x: jax.Array, ring: int, block: int, *, to: bool) -> jax.Array:
  if x.ndim < 2 or not all(isinstance(size, int | np.integer) and size >= 1 for size in (ring, block)):
    raise ValueError(f"{x.shape=}, {ring=}, {block=}; wanted [B L ...], and whole numbers of devices and slots")
  rows, length = x.shape[:2]
  if length % (ring * block):
    wanted = -(-length // (ring * block)) * ring * block
    raise ValueError(f"{length} slots are not whole rounds of {ring=} blocks of {block}; pad to {wanted}")
  rounds = length // (ring * block)
  first, second = (rounds, ring) if to else (ring, rounds)
  return x.reshape(rows, first, second, block, *x.shape[2:]).swapaxes(1, 2).reshape(x.shape)
