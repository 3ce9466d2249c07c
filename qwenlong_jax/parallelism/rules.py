"""The one table from dimensions of arrays to mesh axes, checked against the mesh.

Parameters and both Adam moments are cut over all devices. The forward pass gathers a layer where it is used, and what
the backward pass finds for it is summed into the parts again (fully sharded data parallelism).
"""

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

ROWS = PartitionSpec("data")  # a batch: rows over one axis,
SLOTS = PartitionSpec("data", "ring")  # inside the learner the slots of a row over the other

# Dimensions of parameters that are cut while decoding, to mesh axes. Experts and widths are large and what they add is
# summed; attention's own parameters, 2 GB of Qwen3-30B-A3B, every device has.
DECODING = {"experts": "ring", "width": "ring", "vocabulary": "ring"}
# (name, number of dimensions) -> dimensions; other parameters have none that is cut.
DIMENSIONS = {
  ("gate", 4): ("layers", "experts", "model", "expert width"),
  ("up", 4): ("layers", "experts", "model", "expert width"),
  ("down", 4): ("layers", "experts", "expert width", "model"),
  ("gate", 3): ("layers", "model", "width"),
  ("up", 3): ("layers", "model", "width"),
  ("down", 3): ("layers", "width", "model"),
  ("head", 2): ("model", "vocabulary"),
}


def spread(shape: tuple[int, ...], mesh: Mesh, *, layers: bool = False) -> PartitionSpec:
  """All axes on the first dimension that divides by the devices, else each on the first that divides by it alone.

  The first: its parts lie one after the other in the whole, and the last, which a TPU pads to 128, stays as it is. The
  dimension of `layers` is never cut: every device needs every layer in turn. A parameter that divides by no axis stays
  whole.
  """
  cut: list[str | tuple[str, ...] | None] = [None] * len(shape)

  def place(*axes: str) -> bool:
    size = math.prod(mesh.shape[axis] for axis in axes)
    for i in range(int(layers), len(shape)):
      if cut[i] is None and shape[i] and shape[i] % size == 0:
        cut[i] = axes if len(axes) > 1 else axes[0]
        return True
    return False

  axes = [axis for axis, size in mesh.shape.items() if size > 1]
  if axes and not place(*axes):
    for axis in axes:
      place(axis)
  while cut and cut[-1] is None:
    cut.pop()
  return PartitionSpec(*cut)


def specs(abstract: PyTree, mesh: Mesh) -> PyTree:
  """`spread` of each leaf of a tree of arrays (or of their shapes); what lies below "runs" has its layers first."""

  def spec(path: tuple, x: jax.ShapeDtypeStruct) -> PartitionSpec:
    names = {getattr(key, "key", getattr(key, "name", None)) for key in path}
    return spread(x.shape, mesh, layers="runs" in names)

  return jax.tree_util.tree_map_with_path(spec, abstract)


def decoding(abstract: PyTree, mesh: Mesh) -> PyTree:
  """The PartitionSpec of each parameter while decoding, by `DECODING`; a vocabulary that does not divide stays whole.

  Raises:
    ValueError: the experts or a dense layer's width do not divide over their mesh axis.
  """

  def spec(path: tuple, x: jax.ShapeDtypeStruct) -> PartitionSpec:
    name = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1]
    cut: list[str | None] = []
    for dimension, size in zip(DIMENSIONS.get((name, x.ndim), ()), x.shape):
      axis = DECODING.get(dimension)
      parts = mesh.shape[axis] if axis else 1
      if size % parts and dimension != "vocabulary":
        raise ValueError(f"{size} {dimension} of {name} do not divide over mesh.{axis}={parts}; take one that divides")
      cut.append(axis if parts > 1 and size % parts == 0 else None)
    return PartitionSpec(*cut) if any(cut) else PartitionSpec()

  return jax.tree_util.tree_map_with_path(spec, abstract)


def shardings(abstract: PyTree, mesh: Mesh) -> PyTree:
  """A NamedSharding for each leaf, by `specs`."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(abstract, mesh))


def uncut(spec: PartitionSpec, mesh: Mesh) -> tuple[str, ...]:
  """The mesh axes by which `spec` cuts nothing."""
  used = [axis for axes in spec for axis in _names(axes)]
  return tuple(axis for axis in mesh.axis_names if axis not in used)


def gather(weights: PyTree, specs: PyTree) -> PyTree:
  """Inside shard_map: parameters whole on every device, from the parts that the devices hold by `specs`.

  Backward, each device gets its part of the sum of all devices' gradients. `specs` of stacked layers also serve for a
  layer of the stack.
  """

  def whole(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    for dimension, axes in enumerate(spec):
      # One axis after the other: the TPU compiler makes a slow all-reduce of a gather over several.
      for axis in reversed(_names(axes)):
        x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True)
    return x

  return jax.tree.map(whole, weights, specs)


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (axes,) if isinstance(axes, str) else axes or ()


def rows(mesh: Mesh) -> NamedSharding:
  """The first dimension cut over the data axis."""
  return NamedSharding(mesh, ROWS)
