"""Where parameters lie, by hand and by counting the bytes that a device holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from qwenlong_jax.parallelism import rules
from qwenlong_jax.parallelism.mesh import make_mesh


@pytest.mark.parametrize(
  "shape, wanted",
  [
    ((16, 24), PartitionSpec(None, "data")),  # the last that divides
    ((16, 20), PartitionSpec("data")),
    ((2, 40, 7), PartitionSpec(None, "data")),
    ((2, 8, 16, 5), PartitionSpec(None, None, "data")),
    ((8,), PartitionSpec("data")),
    ((7, 9), PartitionSpec()),
    ((), PartitionSpec()),
    ((0,), PartitionSpec()),
  ],
)
def test_the_last_dimension_that_divides_is_cut(shape, wanted):
  assert rules.spread(shape, make_mesh(8)) == wanted


def test_on_one_device_nothing_is_cut():
  assert rules.spread((16, 24), make_mesh(1)) == PartitionSpec()


@given(st.lists(st.integers(1, 24), max_size=4), st.sampled_from([1, 2, 3, 8]))
def test_any_shape_can_be_placed_and_is_cut_wherever_it_can_be(shape, devices):
  mesh = make_mesh(devices)
  (sharding,) = jax.tree.leaves(rules.shardings([jax.ShapeDtypeStruct(tuple(shape), jnp.float32)], mesh))
  share = np.prod(sharding.shard_shape(tuple(shape)))
  divisible = any(size % devices == 0 for size in shape)
  assert share * (devices if divisible else 1) == np.prod(shape)


def test_each_device_keeps_its_share_of_parameters_and_no_more():
  mesh = make_mesh(8)
  tree = {"wide": np.arange(64.0).reshape(4, 16), "odd": np.arange(7.0)}
  placed = jax.device_put(tree, rules.shardings(tree, mesh))
  for shard in placed["wide"].addressable_shards:
    assert shard.data.shape == (4, 2)
  assert placed["odd"].is_fully_replicated
  np.testing.assert_array_equal(placed["wide"], tree["wide"])


def test_rows_go_to_the_devices_in_order():
  mesh = make_mesh(8)
  rows = jax.device_put(np.arange(16).reshape(16, 1), rules.rows(mesh))
  held = {shard.device: np.asarray(shard.data)[:, 0].tolist() for shard in rows.addressable_shards}
  assert [held[device] for device in mesh.devices.flat] == [[2 * i, 2 * i + 1] for i in range(8)]
  assert jax.device_put(np.zeros(3), rules.replicated(mesh)).is_fully_replicated
