import jax
import numpy as np
import pytest
from jax.experimental import topologies

from qwenlong_jax.parallelism.mesh import make_mesh, neighbours


@pytest.mark.parametrize(
  "data, ring, shape",
  [(-1, 1, (8, 1)), (8, 1, (8, 1)), (3, 1, (3, 1)), (-1, 4, (2, 4)), (1, 8, (1, 8)), (2, 3, (2, 3))],
)
def test_rows_and_their_slots_have_an_axis_each(data, ring, shape):
  mesh = make_mesh(data, ring)
  assert dict(mesh.shape) == {"data": shape[0], "ring": shape[1]}
  assert list(mesh.devices.flat) == jax.devices()[: shape[0] * shape[1]]


@pytest.mark.parametrize("data, ring, most", [(0, 1, 8), (-2, 1, 8), (9, 1, 8), (3, 4, 2)])
def test_more_devices_than_there_are_or_none_are_refused(data, ring, most):
  message = rf"mesh.data={data} times mesh.ring={ring} but there are 8 devices; set mesh.data to at most {most}, or"
  with pytest.raises(ValueError, match=message):
    make_mesh(data, ring)


@pytest.mark.parametrize("ring", [0, 3])
def test_a_ring_that_does_not_divide_the_devices_is_refused(ring):
  with pytest.raises(ValueError, match=rf"mesh.ring={ring} must be at least 1 and divide the 8 devices"):
    make_mesh(ring=ring)


def topology(name):
  pytest.importorskip("libtpu", reason="libtpu, which knows the topologies, is not installed: pip install libtpu")
  return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


@pytest.mark.parametrize(
  "name, ring",
  [("v5p:4x4x4", 16), ("v5p:4x4x4", 64), ("v5p:4x4x4", 8), ("v5p:2x2x4", 16), ("v6e:16x16", 64), ("v6e:4x4", 4)],
)
def test_on_a_tpu_each_ring_goes_from_chip_to_neighbouring_chip(name, ring):
  """One place of the grid apart, the last and the first too, without a way round the edge (few slices have one)."""
  devices = topology(name)
  mesh = make_mesh(ring=ring, devices=devices)
  assert dict(mesh.shape) == {"data": len(devices) // ring, "ring": ring}
  assert set(mesh.devices.flat) == set(devices)
  places = np.array([[device.coords for device in row] for row in mesh.devices])
  assert (np.abs(np.roll(places, -1, axis=1) - places).sum(-1) == 1).all()
  # Rings have one shape, so that the devices of a place in the ring are lines of the grid too.
  assert (places - places[:, :1] == (places - places[:, :1])[0]).all()


@pytest.mark.parametrize("ring, wanted", [(1, 1), (3, None), (32, None)])
def test_a_ring_needs_boxes_of_the_grid(ring, wanted):
  placed = neighbours(topology("v6e:4x4"), ring)
  assert placed is None if wanted is None else placed.shape == (16, 1)
  assert neighbours(jax.devices(), 2) is None  # a CPU has no place
