"""Which blocks of the mask hold anything: the pairs of a query block and a key block that need computing.

Letters: B rows, N query blocks and M key blocks of a row. Block indices count over all rows: b * N + n.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

FAR = jnp.iinfo(jnp.int32).max
BITS = 15  # of a block's index in a pair
MOST_PAIRS = 2**17  # half a megabyte of the chip's scalar memory


class Slots(NamedTuple):
  """What the mask knows of each slot; segment -1 is padding, 0 the shared prefix."""

  segment: Int[Array, "B L"]
  position: Int[Array, "B L"]


class Extent(NamedTuple):
  """Bounds over the slots of each block that are not padding; a block of nothing else has first > last."""

  first: Int[Array, "B N"]  # positions
  last: Int[Array, "B N"]
  low: Int[Array, "B N"]  # segments
  high: Int[Array, "B N"]
  padded: Bool[Array, "B N"]


@dataclass(frozen=True)
class Pairs:
  """The live pairs in the order in which a kernel visits them.

  A pair is `query << 17 | key << 2 | first << 1 | masked` in 32 bits without sign: block indices, whether the pair is
  the first of its query block, and whether the mask hides a part of it.
  """

  codes: Int[Array, " T"]  # those after `count` are 0
  count: Int[Array, "1"]


def extent(slots: Slots, size: int) -> Extent:
  """Of blocks of `size` slots, which divides their number."""
  segment, position = (x.reshape(x.shape[0], -1, size) for x in slots)
  real = segment >= 0
  least = lambda x: jnp.where(real, x, FAR).min(-1)  # noqa: E731
  most = lambda x: jnp.where(real, x, -1).max(-1)  # noqa: E731
  return Extent(least(position), most(position), least(segment), most(segment), ~real.all(-1))


def live(queries: Slots, keys: Slots, query_block: int, key_block: int) -> tuple[Array, Array]:
  """(a query of the block may see a key of the block, every query sees every key), both Bool [B N M].

  The first may be true of a pair that the mask hides (it looks at bounds), never false of one that it shows. The second
  says nothing of queries that are padding.
  """
  q = Extent(*(x[:, :, None] for x in extent(queries, query_block)))
  k = Extent(*(x[:, None, :] for x in extent(keys, key_block)))
  exist = (q.first <= q.last) & (k.first <= k.last)
  meet = (q.low <= k.high) & (k.low <= q.high)
  some = exist & (k.first <= q.last) & ((k.low == 0) | meet)
  one_segment = (k.high == 0) | ((q.low == q.high) & (k.low == k.high) & (q.low == k.low))
  return some, some & (k.last <= q.first) & one_segment & ~k.padded


def pairs(some: Bool[Array, "B N M"], every: Bool[Array, "B N M"], *, by_key: bool) -> Pairs:
  """Query block after query block with its key blocks in order; `by_key`: key block after key block with its queries.

  Raises:
    ValueError: more blocks than are numbered, or more pairs than the chip's scalar memory holds.
  """
  rows, n, m = some.shape
  most = rows * n * m
  if rows * max(n, m) >= 2**BITS:
    raise ValueError(
      f"{rows} rows of {n} query blocks x {m} key blocks; numbers of blocks go up to {2**BITS - 1}: take fewer rows "
      "at a time, or shard the sequence (ring_attention)"
    )
  if most > MOST_PAIRS:
    raise ValueError(
      f"{rows} rows of {n} query blocks x {m} key blocks are {most} pairs, the most is {MOST_PAIRS}; "
      "take fewer rows at a time, or shard the sequence (ring_attention)"
    )
  first = some & (jnp.cumsum(some, axis=2) == 1)
  b, i, j = (jax.lax.broadcasted_iota(jnp.uint32, some.shape, axis) for axis in range(3))
  codes = (b * n + i) << 17 | (b * m + j) << 2 | first.astype(jnp.uint32) << 1 | (~every).astype(jnp.uint32)
  if by_key:
    codes, some = jnp.swapaxes(codes, 1, 2), jnp.swapaxes(some, 1, 2)
  codes, some = codes.ravel(), some.ravel()
  place = jnp.where(some, jnp.cumsum(some) - 1, most + 1)
  compact = jnp.zeros(most + 1, jnp.uint32).at[place].set(codes, mode="drop")  # one more, so that each has a next
  return Pairs(jax.lax.bitcast_convert_type(compact, jnp.int32), some.sum(dtype=jnp.int32)[None])
