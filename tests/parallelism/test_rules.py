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
  "shape, layers, data, ring, wanted",
  [
    ((16, 24), False, 8, 1, PartitionSpec("data")),  # the first that divides
    ((20, 16), False, 8, 1, PartitionSpec(None, "data")),
    ((8, 20, 16), True, 8, 1, PartitionSpec(None, None, "data")),  # each device needs every layer
    ((16, 24), False, 2, 4, PartitionSpec(("data", "ring"))),
    ((3, 16, 24), True, 2, 4, PartitionSpec(None, ("data", "ring"))),
    ((6, 20), False, 2, 4, PartitionSpec("data", "ring")),  # no dimension divides by 8
    ((20, 6), False, 2, 4, PartitionSpec("data")),  # nor the other by 4
    ((7, 4), False, 2, 4, PartitionSpec(None, "data")),
    ((8,), False, 8, 1, PartitionSpec("data")),
    ((7, 9), False, 8, 1, PartitionSpec()),
    ((8, 8), True, 1, 1, PartitionSpec()),
    ((), False, 8, 1, PartitionSpec()),
    ((0,), False, 8, 1, PartitionSpec()),
  ],
)
def test_parameters_are_cut_where_they_divide(shape, layers, data, ring, wanted):
  assert rules.spread(shape, make_mesh(data, ring), layers=layers) == wanted


@given(st.lists(st.integers(1, 24), max_size=4), st.sampled_from([1, 2, 3, 8]))
def test_any_shape_can_be_placed_and_is_cut_wherever_it_can_be(shape, devices):
  mesh = make_mesh(devices)
  (sharding,) = jax.tree.leaves(rules.shardings([jax.ShapeDtypeStruct(tuple(shape), jnp.float32)], mesh))
  share = np.prod(sharding.shard_shape(tuple(shape)))
  divisible = any(size % devices == 0 for size in shape)
  assert share * (devices if divisible else 1) == np.prod(shape)


@pytest.mark.parametrize("data, ring", [(8, 1), (2, 4), (1, 8)])
def test_gathered_parameters_are_whole_and_their_gradients_summed_into_the_parts(data, ring):
  """Of stacked layers one is gathered, as a step does; each device's cotangent is its own number times the whole."""
  mesh = make_mesh(data, ring)
  params = {"runs": {"w": np.arange(3 * 16 * 5.0).reshape(3, 16, 5), "odd": np.arange(21.0).reshape(3, 7)}}
  specs = rules.specs(params, mesh)
  assert [any(x) for x in jax.tree.leaves(specs)] == [False, True]

  def local(params):
    number = 1.0 + jax.lax.axis_index(("data", "ring"))

    def loss(params):
      layer = jax.tree.map(lambda x: x[1], params)
      whole = rules.gather(layer, jax.tree.map(lambda spec: PartitionSpec(*spec[1:]), specs))
      return (number * whole["runs"]["w"] ** 2).sum(), whole["runs"]["w"][None]

    gradient, whole = jax.grad(loss, has_aux=True)(params)
    return gradient["runs"]["w"], whole

  every = PartitionSpec(("data", "ring"))
  gradient, whole = jax.shard_map(
    local, mesh=mesh, in_specs=(specs,), out_specs=(specs["runs"]["w"], every), check_vma=True
  )(params)
  np.testing.assert_array_equal(whole, np.broadcast_to(params["runs"]["w"][1], (8, 16, 5)))
  wanted = np.zeros((3, 16, 5))
  wanted[1] = 2 * params["runs"]["w"][1] * sum(range(1, 9))
  np.testing.assert_array_equal(gradient, wanted)


def test_each_device_keeps_its_share_of_parameters_and_no_more():
  mesh = make_mesh(8)
  tree = {"wide": np.arange(64.0).reshape(16, 4), "odd": np.arange(7.0)}
  placed = jax.device_put(tree, rules.shardings(tree, mesh))
  for shard in placed["wide"].addressable_shards:
    assert shard.data.shape == (2, 4)
  assert placed["odd"].is_fully_replicated
  np.testing.assert_array_equal(placed["wide"], tree["wide"])


def test_rows_go_to_the_devices_in_order():
  mesh = make_mesh(8)
  rows = jax.device_put(np.arange(16).reshape(16, 1), rules.rows(mesh))
  held = {shard.device: np.asarray(shard.data)[:, 0].tolist() for shard in rows.addressable_shards}
  assert [held[device] for device in mesh.devices.flat] == [[2 * i, 2 * i + 1] for i in range(8)]
