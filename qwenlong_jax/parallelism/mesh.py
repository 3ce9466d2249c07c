"""The device mesh of a run."""

import jax
from jax.sharding import AxisType, Mesh


def make_mesh(data: int = -1) -> Mesh:
  """One axis, "data", over `data` devices; -1 takes all there are.

  Raises:
    ValueError: there are fewer devices.
  """
  devices = jax.devices()
  size = len(devices) if data == -1 else data
  if not 1 <= size <= len(devices):
    raise ValueError(f"mesh.data={data} but there are {len(devices)} devices; set mesh.data to at most that, or to -1")
  return jax.make_mesh((size,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:size])
