"""The device mesh of a run."""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh


def make_mesh(data: int = -1, ring: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Axes "data", over which rows are cut, and "ring", over which the slots of a row are; data=-1 takes all there are.

  `devices`: those of this program, or of a topology that is compiled for.

  Raises:
    ValueError: there are fewer devices, or they do not divide over the ring.
  """
  devices = jax.devices() if devices is None else devices
  if ring < 1 or (data == -1 and len(devices) % ring):
    raise ValueError(f"mesh.ring={ring} must be at least 1 and divide the {len(devices)} devices, or set mesh.data")
  rows = len(devices) // ring if data == -1 else data
  if not 1 <= rows * ring <= len(devices):
    raise ValueError(
      f"mesh.data={data} times mesh.ring={ring} but there are {len(devices)} devices; set mesh.data to at most "
      f"{len(devices) // ring}, or to -1"
    )
  kinds = (AxisType.Auto, AxisType.Auto)
  if rows * ring == len(devices) and (placed := neighbours(devices, ring)) is not None:
    return Mesh(placed, ("data", "ring"), axis_types=kinds)
  return jax.make_mesh((rows, ring), ("data", "ring"), axis_types=kinds, devices=devices[: rows * ring])


def neighbours(devices: Sequence[jax.Device], ring: int) -> np.ndarray | None:
  """[data, ring] devices of a TPU's whole grid, such that each ring goes through a box of it from chip to chip.

  None: they have no places in a grid, don't fill it, or the grid has no such boxes. (On these rings the compiler also
  makes gathers asynchronous, which it doesn't where a ring jumps.)
  """
  places = np.array([getattr(device, "coords", ()) for device in devices])
  if not places.size or len(np.unique(places, axis=0)) < len(devices):
    return None
  low, high = places.min(0), places.max(0)
  grid = np.full(high - low + 1, None, object)
  if grid.size != len(devices):
    return None
  grid[tuple((places - low).T)] = devices
  divisors = ([n for n in range(1, size + 1) if size % n == 0] for size in grid.shape)
  boxes = [box for box in itertools.product(*divisors) if math.prod(box) == ring]
  if not boxes:
    return None
  # One that closes, of whole edges of the grid if it can be, and the shortest.
  cut = lambda box: sum(1 < n < size for n, size in zip(box, grid.shape))  # noqa: E731
  box = min(boxes, key=lambda box: (not _closes(box), cut(box), sum(box)))
  parts = grid.reshape([n for size, part in zip(grid.shape, box) for n in (size // part, part)])
  parts = np.moveaxis(parts, range(1, parts.ndim, 2), range(grid.ndim, parts.ndim)).reshape(-1, *box)
  return np.array([_circle(part) for part in parts])


def _closes(box: tuple[int, ...]) -> bool:
  """Whether a way through all places of a box ends beside its start."""
  return math.prod(box) <= 2 or (any(n % 2 == 0 for n in box) and sum(n > 1 for n in box) > 1)


def _circle(box: np.ndarray) -> list:
  """The places of a box, each a step from the one before; the first a step from the last where the box `_closes`."""
  if not _closes(box.shape) or box.size <= 2:
    return _winding(box)
  even = next(axis for axis in range(box.ndim) if box.shape[axis] % 2 == 0)
  lines = np.array([_winding(line) for line in np.moveaxis(box, even, 0)])
  return [*_winding(lines[:, 1:]), *lines[::-1, 0]]  # home along the first places of all lines


def _winding(box: np.ndarray) -> list:
  """The places of a box, each a step from the one before: every other line of it backwards."""
  if box.ndim == 1:
    return list(box)
  lines = [_winding(line) for line in box]
  return [place for i, line in enumerate(lines) for place in (line[::-1] if i % 2 else line)]
