"""The processes of a run, on a pod one for each host: which rows are whose, and what they tell each other.

Every process runs the same program and meets the others in the same order in whatever takes all of them: compiled
programs over the mesh, checkpoints, and `exchange` and what is built on it. Its own rows of a batch are those that lie
on its devices: with a ring over several processes all of these hold the same rows. What is read or written once is
read or written by the first process, in a folder that all of them see.

Letters: P rows of a batch, p of them of this process.
"""

import os
import pickle
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree, Shaped

from qwenlong_jax.parallelism import rules

T = TypeVar("T")

# Seconds without a sign of life after which a process counts as gone, and all others end.
HEARTBEAT = 30
# Seconds for which the first process outlives its own error: its end takes the others along before they name theirs.
LINGER = 5


def start(coordinator: str = "", processes: int = 0, process: int = 0) -> None:
  """Joins the other processes; without arguments JAX finds them (TPU). Before anything else that JAX does.

  Args:
    coordinator: host:port at which the first process can be reached.
    processes: how many there are. `process` is which of them this one is, counted from 0.
  """
  # Its handler would swallow SIGTERM, which the stages answer.
  jax.config.update("jax_enable_preemption_service", False)
  address, count, number = (coordinator, processes, process) if coordinator else (None, None, None)
  jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=HEARTBEAT)


def leave(status: int) -> NoReturn:
  """Ends this process; with status 0 or where all end alike after the others have come here, else at once."""
  sys.stdout.flush()
  sys.stderr.flush()
  if status in (0, 143):
    jax.distributed.shutdown()
    sys.exit(status)
  if jax.process_index() == 0:
    time.sleep(LINGER)
  os._exit(status)  # Without the wait for the others, who may be in the midst of a step.


def await_verdict(error: Exception) -> None:
  """Where `error` may come from another process's end: waits for JAX's runtime, which ends this one and names that."""
  if isinstance(error, jax.errors.JaxRuntimeError) and re.search("(?i)gloo|nccl|connection|unavailable", str(error)):
    print(f"lost touch with another process, looking which: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
    time.sleep(HEARTBEAT + 10)


def is_first() -> bool:
  """Whether this is the process that writes and speaks."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints `text`, once."""
  if is_first():
    print(text, flush=True)


def exchange(value: T) -> list[T]:
  """What every process gives (anything that can be pickled), in their order, on all of them."""
  if jax.process_count() == 1:
    return [value]
  content = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(content.size))
  # A power of two: few shapes to compile for.
  padded = np.zeros(max(1024, 1 << (int(sizes.max()) - 1).bit_length()), np.uint8)
  padded[: content.size] = content
  return [pickle.loads(row[:size].tobytes()) for row, size in zip(multihost_utils.process_allgather(padded), sizes)]


def anywhere(flag: bool) -> bool:
  """Whether `flag` is set on any process; on all of them the same."""
  return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(flag)).any())


def first(function: Callable[[], T]) -> T:
  """What `function` returns on the first process, which alone calls it; its error is raised on all of them."""
  if jax.process_count() == 1:
    return function()
  result: T | None = None
  error: Exception | None = None
  if is_first():
    try:
      result = function()
    except Exception as caught:
      error = caught
  result, error = exchange((result, error))[0]
  if error is not None:
    raise error
  return result  # type: ignore[return-value]


def check(mesh: Mesh) -> None:
  """Raises ValueError if a process has no device in the mesh."""
  idle = sorted(set(range(jax.process_count())) - {device.process_index for device in mesh.devices.flat})
  if idle:
    shape = " times ".join(f"mesh.{axis}={size}" for axis, size in mesh.shape.items())
    raise ValueError(
      f"{shape} takes {mesh.size} of the {jax.device_count()} devices of {jax.process_count()} processes and none of "
      f"process {idle[0]}'s; set mesh.data=-1 to take all, or start fewer processes"
    )


def places(mesh: Mesh) -> int:
  """On how many places of the data axis this process has devices."""
  return len(_parts(mesh, mesh.shape["data"]))


def rows(mesh: Mesh, count: int) -> Int[np.ndarray, " p"]:
  """Which of the `count` rows of a batch are this process's, in their order. `count` divides by the data axis."""
  return np.concatenate([np.arange(*part) for part in _parts(mesh, count)])


def _parts(mesh: Mesh, count: int) -> list[tuple[int, int]]:
  """(begin, end) of each run of rows that a device of this process holds."""
  if count % mesh.shape["data"]:
    raise ValueError(f"{count} rows do not divide over mesh.data={mesh.shape['data']}")
  held = rules.rows(mesh).addressable_devices_indices_map((count,)).values()
  return sorted({index[0].indices(count)[:2] for index in held if index is not None})


def put(tree: PyTree, mesh: Mesh) -> PyTree:
  """The global arrays [P ...] whose rows of this process are the arrays [p ...] of `tree`, cut over the data axis."""
  sharding = rules.rows(mesh)

  def whole(x: Shaped[np.ndarray, "p ..."]) -> Shaped[Array, "P ..."]:
    count = len(x) * mesh.shape["data"] // places(mesh)
    mine = rows(mesh, count)

    def part(index: Any) -> np.ndarray:
      begin, end, _ = index[0].indices(count)
      return x[np.searchsorted(mine, begin) :][: end - begin]

    return jax.make_array_from_callback((count, *x.shape[1:]), sharding, part)

  return jax.tree.map(whole, tree)


def fetch(tree: PyTree, mesh: Mesh) -> PyTree:
  """This process's rows of global arrays that are cut over the data axis or not at all, and whole scalars, as numpy."""
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def mine(x: Shaped[Array, "P ..."]) -> Shaped[np.ndarray, "p ..."]:
    if x.is_fully_replicated:
      here = np.asarray(x.addressable_data(0))
      return here[rows(mesh, len(here))] if here.ndim else here
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[begin]) for begin in sorted(parts)])

  return jax.tree.map(mine, tree)


def gather(tree: PyTree, mesh: Mesh) -> PyTree:
  """Arrays [P ...] of the whole batch, on all processes, from the rows [p ...] of each; of any dtype, bit by bit."""
  if jax.process_count() == 1:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  mine = rows(mesh, len(leaves[0]) * mesh.shape["data"] // places(mesh))
  theirs = exchange((mine, leaves))
  # Processes of one ring hold the same rows: each is taken once.
  order = np.unique(np.concatenate([rows for rows, _ in theirs]), return_index=True)[1]
  return jax.tree.unflatten(
    structure, [np.concatenate(parts)[order] for parts in zip(*(leaves for _, leaves in theirs), strict=True)]
  )
