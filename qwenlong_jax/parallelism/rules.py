"""The one table from dimensions of parameters to mesh axes, checked against the mesh."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def spread(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """The last dimension that divides by the data axis is cut over it; a parameter without one stays whole.

  Master parameters and both Adam moments lie so, hence each device keeps 1/data of them; the forward pass gathers.
  """
  size = mesh.shape["data"]
  for axis in reversed(range(len(shape))):
    if size > 1 and shape[axis] % size == 0 and shape[axis] >= size:
      return PartitionSpec(*(None,) * axis, "data")
  return PartitionSpec()


def shardings(abstract: PyTree, mesh: Mesh) -> PyTree:
  """A NamedSharding for each leaf of a tree of arrays (or of their shapes)."""
  return jax.tree.map(lambda x: NamedSharding(mesh, spread(x.shape, mesh)), abstract)


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
  """The first dimension cut over the data axis."""
  return NamedSharding(mesh, PartitionSpec("data"))
