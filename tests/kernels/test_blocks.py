"""The list of live block pairs, against the mask itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.kernels.flash_attention.blocks import Slots, live, pairs
from qwenlong_jax.kernels.flash_attention.reference import visible

QUERIES, KEYS = 4, 8  # slots in a block
SLOTS = 24


@st.composite
def slots(draw):
  """Two rows of any segments and positions at all."""
  segment = draw(st.lists(st.integers(-1, 3), min_size=2 * SLOTS, max_size=2 * SLOTS))
  position = draw(st.lists(st.integers(0, 9), min_size=2 * SLOTS, max_size=2 * SLOTS))
  if draw(st.booleans()):
    segment, position = sorted(segment), sorted(position)
  return Slots(*(jnp.asarray(x).reshape(2, SLOTS) for x in (segment, position)))


def cut(mask):
  """[B, query block, key block, queries of the block, keys of the block]"""
  blocks = np.asarray(mask).reshape(2, SLOTS // QUERIES, QUERIES, SLOTS // KEYS, KEYS)
  return np.moveaxis(blocks, 3, 2)


@given(slots(), slots())
def test_no_pair_that_the_mask_shows_is_left_out(queries, keys):
  some, _ = live(queries, keys, QUERIES, KEYS)
  shown = cut(visible(*queries, *keys)).any((3, 4))
  assert not (shown & ~np.asarray(some)).any()


@given(slots(), slots())
def test_a_pair_without_mask_hides_nothing_from_a_real_query(queries, keys):
  some, every = live(queries, keys, QUERIES, KEYS)
  mask = cut(visible(*queries, *keys))
  padding = (np.asarray(queries.segment) < 0).reshape(2, SLOTS // QUERIES, 1, QUERIES, 1)
  assert (mask | padding).all((3, 4))[np.asarray(every)].all()
  assert not (np.asarray(every) & ~np.asarray(some)).any()


def decode(listed):
  count = int(listed.count[0])
  codes = np.asarray(listed.codes).view(np.uint32)
  assert (codes[count:] == 0).all()
  return [(int(c >> 17), int(c >> 2 & 0x7FFF), bool(c & 2), bool(c & 1)) for c in codes[:count]]


@given(st.lists(st.booleans(), min_size=24, max_size=24), st.lists(st.booleans(), min_size=24, max_size=24))
def test_pairs_are_listed_once_in_order_with_their_flags(some, every):
  some, every = (np.array(x).reshape(2, 3, 4) for x in (some, every))
  every &= some
  wanted = []
  for b, i, j in np.argwhere(some):
    wanted.append((b * 3 + i, b * 4 + j, not some[b, i, :j].any(), not every[b, i, j]))
  assert decode(pairs(jnp.asarray(some), jnp.asarray(every), by_key=False)) == wanted
  assert decode(pairs(jnp.asarray(some), jnp.asarray(every), by_key=True)) == sorted(wanted, key=lambda x: (x[1], x[0]))


def test_causal_attention_visits_the_half_and_masks_the_diagonal():
  row = Slots(jnp.ones((1, 64), int), jnp.arange(64)[None])
  some, every = live(row, row, 8, 8)
  np.testing.assert_array_equal(some[0], np.tri(8, dtype=bool))
  np.testing.assert_array_equal(every[0], np.tri(8, k=-1, dtype=bool))


def test_a_shared_prefix_of_120k_with_eight_branches_of_8k_is_mostly_without_mask():
  """A branch visits no other branch."""
  prefix, branch, size = 120 * 1024, 8 * 1024, 512
  segment = np.repeat([0, *range(1, 9)], [prefix, *[branch] * 8])[None]
  position = np.concatenate([np.arange(prefix), *[prefix + np.arange(branch)] * 8])[None]
  row = Slots(jnp.asarray(segment), jnp.asarray(position))
  some, every = (np.asarray(x[0]) for x in live(row, row, size, size))
  n, m = prefix // size, branch // size
  assert some.sum() == n * (n + 1) // 2 + 8 * m * n + 8 * m * (m + 1) // 2
  assert every.sum() == some.sum() - (n + 8 * m)
  assert every.sum() / some.sum() > 0.98


def test_too_many_blocks_are_refused_too():
  some = jax.ShapeDtypeStruct((40000, 1, 1), bool)
  with pytest.raises(ValueError, match=r"40000 rows of 1 query blocks x 1 key blocks; numbers .* go up to 32767"):
    jax.eval_shape(lambda some: pairs(some, some, by_key=False), some)


def test_too_many_pairs_are_refused_with_the_way_out():
  nothing = jnp.zeros((1, 1024, 256), bool)
  with pytest.raises(ValueError, match=r"1 rows of 1024 query blocks x 256 key blocks are 262144 pairs.*shard the seq"):
    pairs(nothing, nothing, by_key=False)
