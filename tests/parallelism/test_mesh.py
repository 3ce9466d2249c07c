import jax
import pytest

from qwenlong_jax.parallelism.mesh import make_mesh


@pytest.mark.parametrize("data, size", [(-1, 8), (8, 8), (3, 3), (1, 1)])
def test_the_data_axis_has_the_devices_asked_for(data, size):
  mesh = make_mesh(data)
  assert dict(mesh.shape) == {"data": size}
  assert list(mesh.devices.flat) == jax.devices()[:size]


@pytest.mark.parametrize("data", [0, -2, 9])
def test_more_devices_than_there_are_or_none_are_refused(data):
  with pytest.raises(ValueError, match=rf"mesh.data={data} but there are 8 devices; set mesh.data to at most that"):
    make_mesh(data)
