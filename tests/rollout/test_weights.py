import jax
import numpy as np
import pytest

from qwenlong_jax.parallelism import rules
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rollout.weights import for_decoding


@pytest.mark.parametrize("devices", [2, 8])
def test_every_device_holds_every_parameter_unchanged(tiny, devices):
  mesh = make_mesh(devices)
  _, params = tiny("moe")
  spread = jax.device_put(params, rules.shardings(params, mesh))
  assert not all(x.is_fully_replicated for x in jax.tree.leaves(spread))
  for want, got in zip(jax.tree.leaves(params), jax.tree.leaves(for_decoding(spread, mesh, np.float32)), strict=True):
    assert got.is_fully_replicated and got.sharding.device_set == set(mesh.devices.flat)
    np.testing.assert_array_equal(got, want)


def test_one_device_copies_nothing(tiny):
  _, params = tiny("dense")
  assert for_decoding(params, make_mesh(1), np.float32) is params
